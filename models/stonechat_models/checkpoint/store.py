"""The models on this machine: those in the Hugging Face cache, and the default model."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stonechat_models.checkpoint import default_model
from stonechat_models.checkpoint.cache import cache_root, sampled_hash
from stonechat_models.errors import ModelLoadError

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in a cache.

    `num_bytes` is the size of its files. For the default model it includes the converted files.
    """

    name: str
    place: Path
    num_bytes: int
    last_used: float
    """Seconds since the epoch."""


def list_models() -> list[StoredModel]:
    """Return the models on this machine by name, including those other programs downloaded."""
    return sorted([*_default_model(), *_hub_models()], key=lambda model: model.name.lower())


def _default_model() -> Iterator[StoredModel]:
    for path in _default_files():
        folders = [path.parent, *_conversions(path)]
        size = sum(_folder_bytes(folder) for folder in folders)
        yield StoredModel(default_model.NAME, path, size, path.stat().st_atime)


def _default_files() -> list[Path]:
    return sorted((cache_root() / "default-model").glob("*/*.gguf"))


def _hub_models() -> Iterator[StoredModel]:
    cache = _scan()
    for repo in cache.repos if cache is not None else ():
        if repo.repo_type == "model":
            size, last_used = repo.size_on_disk, repo.last_accessed
            yield StoredModel(repo.repo_id, repo.repo_path, size, last_used)


def _scan() -> "HFCacheInfo | None":
    """Return what the Hugging Face cache holds, or None if there is no such cache."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return None


def remove_model(name: str) -> int:
    """Delete a model and what was converted from its GGUF files. Return the bytes freed.

    Raises `ModelLoadError` when the model is not on this machine.
    """
    if name in ("default", default_model.NAME):
        freed = sum(_remove_with_conversions(path, path.parent) for path in _default_files())
        if not freed:
            raise ModelLoadError(
                f"{name} is not on this machine; `stonechat models list` shows the models that are"
            )
        return freed
    cache = _scan()
    repos = cache.repos if cache is not None else ()
    repo = next((r for r in repos if r.repo_type == "model" and r.repo_id == name), None)
    if repo is None:
        raise ModelLoadError(
            f"{name} is not on this machine; `stonechat models list` shows the models that are"
        )
    freed = 0
    for path in sorted(repo.repo_path.glob("snapshots/*/**/*.gguf")):
        freed += sum(_remove_folder(folder) for folder in _conversions(path))
    shutil.rmtree(repo.repo_path)
    return freed + repo.size_on_disk


def _remove_with_conversions(path: Path, folder: Path) -> int:
    return sum(_remove_folder(target) for target in [*_conversions(path), folder])


def _conversions(path: Path) -> list[Path]:
    """Return the folders that were converted from a GGUF file."""
    key = sampled_hash([path])[:24]
    return [folder for folder in (cache_root() / "gguf").glob(f"{key}-*") if folder.is_dir()]


def _remove_folder(folder: Path) -> int:
    size = _folder_bytes(folder)
    shutil.rmtree(folder)
    return size


def _folder_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
