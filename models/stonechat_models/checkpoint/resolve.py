"""Finds the files of the model that the user names.

A model is the default one, a `.gguf` file, a local folder, a Hugging Face id, or an alias. Each
becomes a `ModelFiles`: a folder of Hugging Face files, and the files that hold the weights.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stonechat_models.checkpoint import default_model, hub
from stonechat_models.checkpoint.aliases import resolve_alias
from stonechat_models.checkpoint.cache import (
    Progress,
    cache_root,
    file_sha256,
    fill_once,
    sampled_hash,
)
from stonechat_models.checkpoint.gguf.convert import converted_folder
from stonechat_models.checkpoint.gguf.reader import gguf_parts
from stonechat_models.checkpoint.hf_config import HFConfig, read_config
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import reason_of

DEFAULT_NAMES = frozenset({"", "default", default_model.NAME})
TOKENIZER_SOURCES = ("tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "tekken.json")
CONVERTED_SUFFIXES = frozenset({".json", ".model", ".txt", ".jinja", ".py"})
"""Files from which a tokenizer is converted: all but weights, and small enough to hash whole."""
WeightFormat = Literal["safetensors", "gguf", "pickle"]


@dataclass(frozen=True, slots=True)
class Located:
    """A model's name, and its folder or GGUF file. `path` is None for a model to be fetched."""

    name: str
    path: Path | None


def locate(config: EngineConfig, progress: Progress, *, only_headers: bool = False) -> Located:
    """Find what the name of a model means: its files on this machine. Fetch them if needed.

    `only_headers`: of the models on the hub, only those in its local cache have a path. Raises
    `ModelLoadError` when the model does not exist.
    """
    name = resolve_alias(config.model)
    if name in DEFAULT_NAMES and not Path(name or ".missing").is_dir():
        return Located(default_model.NAME, default_model.fetch_default_model(progress))
    path = Path(name).expanduser()
    if path.is_dir():
        return Located(path.resolve().name, path.resolve())
    if name.endswith(".gguf"):
        if not path.is_file():
            path = hub.fetch_gguf(name, config.revision, progress, only_cached=only_headers)
        return Located(path.stem, path.absolute())
    if path.exists():
        raise ModelLoadError(f"{path} is neither a folder nor a .gguf file; name one of these")
    if only_headers:
        return Located(name, hub.cached_snapshot(name, config.revision))
    return Located(name, hub.fetch_snapshot(name, config.revision, config.allow_pickle, progress))


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on disk.

    `folder` has config.json and tokenizer.json. It also has tokenizer_config.json,
    generation_config.json and chat templates if the model has them. For a GGUF, `folder` lies in
    the cache, and only the GGUF holds weights. `weights` are the files with the weights, in a
    stable order.
    """

    name: str
    folder: Path
    config: HFConfig
    gguf: Path | None
    weights: tuple[Path, ...]

    @property
    def weight_format(self) -> WeightFormat:
        if self.gguf is not None:
            return "gguf"
        is_safe = all(path.suffix == ".safetensors" for path in self.weights)
        return "safetensors" if is_safe else "pickle"


def resolve_model(config: EngineConfig, progress: Progress) -> ModelFiles:
    """Find the model that `config` names. Fetch and convert it if needed.

    `progress` receives lines to show to the user, only when something slow is done.
    Raises `ModelLoadError` when the model does not exist or cannot be read, and its subclass
    `UnsupportedModelError` when it would be read wrongly.
    """
    located = locate(config, progress)
    assert located.path is not None
    if located.path.is_file():
        return _from_gguf(located.name, located.path, progress)
    return _from_folder(located.name, located.path, config.allow_pickle, progress)


def fetch_model(config: EngineConfig, progress: Progress) -> Path:
    """Download and convert the model of `config`. Return its folder.

    A download that stopped before continues. Raises `ModelLoadError` when the model does not
    exist, or is neither on this machine nor reachable.
    """
    return resolve_model(config, progress).folder


def weights_hash(files: ModelFiles) -> str:
    """Return a hash that distinguishes models by their weights. It samples them, so it is quick."""
    return sampled_hash(list(files.weights))


def _from_gguf(name: str, path: Path, progress: Progress) -> ModelFiles:
    folder = converted_folder(path, progress)
    weights = tuple(gguf_parts(path))
    return ModelFiles(name, folder, read_config(folder / "config.json"), path, weights)


def _from_folder(name: str, folder: Path, allow_pickle: bool, progress: Progress) -> ModelFiles:
    config = read_config(folder / "config.json")
    weights = weights_in(folder, allow_pickle)
    if not (folder / "tokenizer.json").is_file():
        folder = _with_tokenizer(folder, progress)
    return ModelFiles(name, folder, config, None, weights)


def weights_in(folder: Path, allow_pickle: bool) -> tuple[Path, ...]:
    """Return the files with a model's weights. Raises `ModelLoadError` if there are none to use."""
    files = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("consolidated"))
    if files:
        return tuple(files)
    pickled = sorted(folder.glob("pytorch_model*.bin"))
    if pickled and not allow_pickle:
        raise ModelLoadError(
            f"{folder} has weights only as pickled .bin files, which can run code when read; "
            "use a model with safetensors, or --allow-pickle if you trust the source"
        )
    if not pickled:
        raise ModelLoadError(f"{folder} has no safetensors files; name a folder that has them")
    return tuple(pickled)


def tokenizer_folder(folder: Path) -> Path | None:
    """Return where the cache keeps the tokenizer that is converted from other files of `folder`.

    Its name is a hash of the folder's path, to which its links lead, and of all files that the
    conversion may read. None: there is nothing to convert.
    """
    if not (folder / "config.json").is_file() or not any(
        (folder / name).is_file() for name in TOKENIZER_SOURCES
    ):
        return None
    digest = hashlib.sha256(os.fsencode(folder.resolve()))
    for path in sorted(folder.rglob("*")):
        if path.suffix in CONVERTED_SUFFIXES and path.is_file():
            name = os.fsencode(path.relative_to(folder))
            digest.update(b"%s\0%s" % (name, file_sha256(path).encode()))
    return cache_root() / "tokenizers" / digest.hexdigest()[:24]


def _with_tokenizer(folder: Path, progress: Progress) -> Path:
    """Convert another tokenizer format to tokenizer.json. Return the cache folder that holds it.

    The cache folder links to the other files of `folder`, the weights included.
    """
    converted = tokenizer_folder(folder)
    if converted is None:
        raise ModelLoadError(
            f"{folder} has neither tokenizer.json nor another tokenizer file; add the model's own"
        )

    def build(target: Path) -> None:
        from transformers import AutoTokenizer

        progress(f"converting the tokenizer of {folder.name} (once)")
        try:
            AutoTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(target)
        except Exception as error:  # the library raises many types; all mean the same here
            raise ModelLoadError(
                f"{folder}: cannot convert its tokenizer to tokenizer.json; add that file: "
                f"{reason_of(error)}"
            ) from error
        if not (target / "tokenizer.json").is_file():
            raise ModelLoadError(
                f"{folder}: its tokenizer cannot be converted to tokenizer.json; add that file"
            )
        for path in folder.iterdir():
            if path.is_file() and not (target / path.name).exists():
                (target / path.name).symlink_to(path.resolve())

    return fill_once(converted, progress, build)
