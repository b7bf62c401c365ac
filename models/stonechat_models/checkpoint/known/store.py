"""The models on this machine: those in the Hugging Face cache, and the default model."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stonechat_models.checkpoint.cache import cache_root
from stonechat_models.checkpoint.gguf.convert import conversion_key
from stonechat_models.checkpoint.gguf.reader import gguf_parts
from stonechat_models.checkpoint.known import default_model
from stonechat_models.checkpoint.known.aliases import read_aliases
from stonechat_models.checkpoint.known.spelling import did_you_mean
from stonechat_models.checkpoint.tokenizers.conversion import tokenizer_folder
from stonechat_models.errors import ModelLoadError

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in a cache. `num_bytes` is the size of its files, converted ones included."""

    name: str
    place: Path
    num_bytes: int
    last_used: float
    """Seconds since the epoch."""


def list_models() -> list[StoredModel]:
    """Return the models on this machine by name, including those other programs downloaded."""
    return sorted([*_default_model(), *_hub_models()], key=lambda model: model.name.lower())


def _default_model() -> Iterator[StoredModel]:
    for path in sorted((cache_root() / "default-model").glob("*/*.gguf")):
        size = sum(_folder_bytes(folder) for folder in (path.parent, *_conversions(path.parent)))
        yield StoredModel(default_model.NAME, path, size, path.stat().st_atime)


def _hub_models() -> Iterator[StoredModel]:
    cache = _scan()
    for repo in cache.repos if cache is not None else ():
        if repo.repo_type == "model":
            converted = sum(_folder_bytes(folder) for folder in _conversions(repo.repo_path))
            size, last_used = repo.size_on_disk + converted, repo.last_accessed
            yield StoredModel(repo.repo_id, repo.repo_path, size, last_used)


def _scan() -> "HFCacheInfo | None":
    """Return what the Hugging Face cache holds, or None if there is no such cache."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return None


def model_folders(model: StoredModel) -> list[Path]:
    """Return the folders with a model's files: as downloaded, the newest first, and converted."""
    folder = model.place if model.place.is_dir() else model.place.parent
    snapshots = (folder / "snapshots").glob("*")
    newest_first = sorted(snapshots, key=lambda path: path.stat().st_mtime, reverse=True)
    return [*newest_first, folder, *_conversions(folder)]


def remove_model(name: str) -> int:
    """Delete a model and all that was converted from its files. Return the bytes freed.

    Raises `ModelLoadError` when the model is not on this machine.
    """
    name = default_model.NAME if name == "default" else name
    models = [model for model in list_models() if model.name == name]
    if not models:
        if name in read_aliases():
            raise ModelLoadError(
                f"{name} is a short name; `stonechat models alias {name}` removes it"
            )
        names = [model.name for model in list_models()]
        hint = did_you_mean(name, names, "`stonechat models` lists the models that are")
        raise ModelLoadError(f"{name} is not on this machine{hint}")
    for model in models:
        folder = model.place if model.place.is_dir() else model.place.parent
        for path in (*_conversions(folder), folder):
            shutil.rmtree(path)
    return sum(model.num_bytes for model in models)


def _conversions(folder: Path) -> list[Path]:
    """Return the folders in the cache that were converted from files below `folder`."""
    converted: list[Path] = []
    for path in filter(Path.is_file, folder.rglob("*.gguf")):
        with suppress(ModelLoadError):  # parts are missing or damaged
            key = conversion_key(gguf_parts(path))
            converted += (cache_root() / "gguf").glob(f"{key}-*")
    for path in folder.rglob("config.json"):
        if not (path.parent / "tokenizer.json").is_file():
            converted += filter(None, [tokenizer_folder(path.parent)])
    return sorted({path for path in converted if path.is_dir()})


def _folder_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
