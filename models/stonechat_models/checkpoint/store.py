"""The models on this machine: those of the Hugging Face cache, the default one, and aliases."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stonechat_models.checkpoint import default_model
from stonechat_models.checkpoint.cache import Progress, cache_root, sampled_hash
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo

ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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


def fetch_model(config: EngineConfig, progress: Progress) -> Path:
    """Make the model of `config` ready: downloaded (going on where a download stopped) and
    converted; its folder.

    Raises `ModelLoadError` when there is no such model, or it is neither here nor reachable.
    """
    from stonechat_models.checkpoint.resolve import resolve_model

    return resolve_model(config, progress).folder


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


# -- aliases -------------------------------------------------------------------------------------


def alias_file() -> Path:
    """Where this user's aliases are kept; it may not exist."""
    from platformdirs import user_config_path

    return user_config_path("stonechat", appauthor=False) / "aliases.json"


def read_aliases() -> dict[str, str]:
    """Names and the models they stand for. Raises `ModelLoadError` for a damaged file."""
    path = alias_file()
    try:
        aliases = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {path}: {error}") from error
    if not isinstance(aliases, dict) or not all(isinstance(v, str) for v in aliases.values()):
        raise ModelLoadError(f"{path} is no JSON object of names and models")
    return aliases


def set_alias(name: str, model: str | None) -> None:
    """Let `name` stand for `model`; None: forget it.

    Raises `ModelLoadError` for a name that could be a path or an id, or one to forget that is not
    there.
    """
    aliases = read_aliases()
    if model is None:
        if name not in aliases:
            raise ModelLoadError(f"there is no alias {name}")
        del aliases[name]
    else:
        if ALIAS.fullmatch(name) is None or name in ("default", default_model.NAME):
            raise ModelLoadError(f"{name!r} cannot be an alias: letters, digits, . _ and - only")
        aliases[name] = model
    path = alias_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(aliases, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def resolve_alias(name: str) -> str:
    """The model that `name` stands for, or `name` itself. A file or folder of that name wins."""
    if ALIAS.fullmatch(name) is None or Path(name).exists():
        return name
    return read_aliases().get(name, name)
