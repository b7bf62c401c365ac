"""Finds the files of the model that the user names.

A model is the default one, a `.gguf` file, a local folder, a Hugging Face id, or an alias. Each
becomes a `ModelFiles`: a folder of Hugging Face files, and the files that hold the weights.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from stonechat_models.checkpoint import default_model, hub
from stonechat_models.checkpoint.aliases import resolve_alias
from stonechat_models.checkpoint.cache import Progress, cache_root, fill_once, sampled_hash
from stonechat_models.checkpoint.gguf.convert import converted_folder
from stonechat_models.checkpoint.gguf.reader import gguf_parts
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError

DEFAULT_NAMES = frozenset({"", "default", default_model.NAME})
TOKENIZER_SOURCES = ("tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "tekken.json")


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
    config: dict[str, object]
    gguf: Path | None
    weights: tuple[Path, ...]


def resolve_model(config: EngineConfig, progress: Progress) -> ModelFiles:
    """Find the model that `config` names. Fetch and convert it if needed.

    `progress` receives lines to show to the user, only when something slow is done.
    Raises `ModelLoadError` when the model does not exist or cannot be read, and its subclass
    `UnsupportedModelError` when it would be read wrongly.
    """
    config = replace(config, model=resolve_alias(config.model))
    if config.model in DEFAULT_NAMES and not Path(config.model or ".missing").is_dir():
        return _from_gguf(default_model.NAME, default_model.fetch_default_model(progress), progress)
    path = Path(config.model).expanduser()
    if path.is_dir():
        return _from_folder(path.resolve().name, path.resolve(), config.allow_pickle, progress)
    if config.model.endswith(".gguf"):
        gguf = path if path.is_file() else hub.fetch_gguf(config.model, config.revision, progress)
        return _from_gguf(gguf.stem, gguf.resolve(), progress)
    if path.exists():
        raise ModelLoadError(f"{path} is neither a folder nor a .gguf file; name one of these")
    folder = hub.fetch_snapshot(config.model, config.revision, config.allow_pickle, progress)
    return _from_folder(config.model, folder, config.allow_pickle, progress)


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
    weights = tuple(gguf_parts(path))
    missing = [part.name for part in weights if not part.is_file()]
    if missing:
        raise ModelLoadError(
            f"{path} is split; put all its parts into one folder. Missing: {', '.join(missing)}"
        )
    folder = converted_folder(path, progress)
    return ModelFiles(name, folder, _read_config(folder), path, weights)


def _from_folder(name: str, folder: Path, allow_pickle: bool, progress: Progress) -> ModelFiles:
    config = _read_config(folder)
    weights = _weights_in(folder, allow_pickle)
    if not (folder / "tokenizer.json").is_file():
        folder = _with_tokenizer(folder, progress)
    return ModelFiles(name, folder, config, None, weights)


def _read_config(folder: Path) -> dict[str, object]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelLoadError(
            f"{folder} has no config.json; name a folder with a Hugging Face model"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {path}; download it again: {error}") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{path} is not a JSON object; download it again")
    return config


def _weights_in(folder: Path, allow_pickle: bool) -> tuple[Path, ...]:
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


def _with_tokenizer(folder: Path, progress: Progress) -> Path:
    """Convert another tokenizer format to tokenizer.json. Return the cache folder that holds it.

    The cache folder links to the other files of `folder`, the weights included.
    """
    sources = [folder / name for name in TOKENIZER_SOURCES if (folder / name).is_file()]
    if not sources:
        raise ModelLoadError(
            f"{folder} has neither tokenizer.json nor another tokenizer file; add the model's own"
        )
    key = sampled_hash([folder / "config.json", *sources, *sorted(folder.glob("*.safetensors"))])

    def build(target: Path) -> None:
        from transformers import AutoTokenizer

        progress(f"converting the tokenizer of {folder.name} (once)")
        try:
            AutoTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(target)
        except (OSError, ValueError, ImportError) as error:
            raise ModelLoadError(
                f"{folder}: cannot convert its tokenizer to tokenizer.json; add that file: {error}"
            ) from error
        if not (target / "tokenizer.json").is_file():
            raise ModelLoadError(
                f"{folder}: its tokenizer cannot be converted to tokenizer.json; add that file"
            )
        for path in folder.iterdir():
            if path.is_file() and not (target / path.name).exists():
                (target / path.name).symlink_to(path.resolve())

    return fill_once(cache_root() / "tokenizers" / key[:24], progress, build)
