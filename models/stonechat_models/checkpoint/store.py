"""The models on this machine: those of the Hugging Face cache, and the default one."""

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
    """A model in a cache. `num_bytes` is what its files take, conversions included."""

    name: str
    place: Path
    num_bytes: int
    last_used: float
    """Seconds since the epoch."""


def list_models() -> list[StoredModel]:
    """The models that are here, by name; whatever was downloaded for other programs too."""
    return sorted([*_default(), *_hub()], key=lambda model: model.name.lower())


def _default() -> Iterator[StoredModel]:
    for path in _default_files():
        folders = [path.parent, *_conversions(path)]
        size = sum(_folder_bytes(folder) for folder in folders)
        yield StoredModel(default_model.NAME, path, size, path.stat().st_atime)


def _default_files() -> list[Path]:
    return sorted((cache_root() / "default-model").glob("*/*.gguf"))


def _hub() -> Iterator[StoredModel]:
    cache = _scan()
    for repo in cache.repos if cache is not None else ():
        if repo.repo_type == "model":
            size, used = repo.size_on_disk, repo.last_accessed
            yield StoredModel(repo.repo_id, repo.repo_path, size, used)


def _scan() -> "HFCacheInfo | None":
    """None: nothing was ever downloaded."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return None


def remove_model(name: str) -> int:
    """Delete a model and what was converted from it; the bytes that are free again.

    Raises `ModelLoadError` when it is not here.
    """
    if name in ("default", default_model.NAME):
        freed = sum(_remove_with_conversions(path, path.parent) for path in _default_files())
        if not freed:
            raise ModelLoadError(f"{name} is not here")
        return freed
    cache = _scan()
    repos = cache.repos if cache is not None else ()
    repo = next((r for r in repos if r.repo_type == "model" and r.repo_id == name), None)
    if repo is None:
        raise ModelLoadError(f"{name} is not here; `stonechat models list` tells what is")
    freed = 0
    for path in sorted(repo.repo_path.glob("snapshots/*/**/*.gguf")):
        freed += sum(_remove_folder(folder) for folder in _conversions(path))
    shutil.rmtree(repo.repo_path)
    return freed + repo.size_on_disk


def _remove_with_conversions(path: Path, folder: Path) -> int:
    return sum(_remove_folder(one) for one in [*_conversions(path), folder])


def _conversions(path: Path) -> list[Path]:
    """Folders converted from a GGUF file."""
    key = sampled_hash([path])[:24]
    return [one for one in (cache_root() / "gguf").glob(f"{key}-*") if one.is_dir()]


def _remove_folder(folder: Path) -> int:
    size = _folder_bytes(folder)
    shutil.rmtree(folder)
    return size


def _folder_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
