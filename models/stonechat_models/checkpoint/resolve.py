"""From what the user names as a model to files on disk.

A model is the default one, a `.gguf` file, a local folder, a Hugging Face id, or an alias. Whatever
it is, it becomes a `ModelFiles`: a folder of Hugging Face files beside the weights.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from stonechat_models.checkpoint import default_model, hub
from stonechat_models.checkpoint.aliases import resolve_alias
from stonechat_models.checkpoint.cache import Progress, build_once, cache_root, sampled_hash
from stonechat_models.checkpoint.gguf.convert import converted_folder
from stonechat_models.checkpoint.gguf.reader import gguf_parts
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError

DEFAULT_NAMES = frozenset({"", "default", default_model.NAME})
TOKENIZER_SOURCES = ("tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "tekken.json")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on disk.

    `folder` has config.json and tokenizer.json, and what is known of tokenizer_config.json,
    generation_config.json and chat templates. For a GGUF it lies in the cache; weights are then
    those of the file alone. `weights` are the files that hold them, in a stable order.
    """

    name: str
    folder: Path
    config: dict[str, object]
    gguf: Path | None
    weights: tuple[Path, ...]


def resolve_model(config: EngineConfig, progress: Progress) -> ModelFiles:
    """Find the model that `config` names, fetching and converting it as needed.

    `progress` is given lines for a person, only while something slow is done.
    Raises `ModelLoadError` when there is no such model or it cannot be read, and its subclass
    `UnsupportedModelError` when it would be read wrongly.
    """
    config = replace(config, model=resolve_alias(config.model))
    if config.model in DEFAULT_NAMES and not Path(config.model or ".missing").is_dir():
        return _from_gguf(default_model.NAME, default_model.fetch_default_model(progress), progress)
    path = Path(config.model).expanduser()
    if path.is_dir():
        return _from_folder(path.resolve().name, path.resolve(), config.allow_pickle, progress)
    if config.model.endswith(".gguf"):
        found = path if path.is_file() else hub.fetch_gguf(config.model, config.revision, progress)
        return _from_gguf(found.stem, found.resolve(), progress)
    if path.exists():
        raise ModelLoadError(f"{path} is neither a folder nor a .gguf file")
    folder = hub.fetch_snapshot(config.model, config.revision, config.allow_pickle, progress)
    return _from_folder(config.model, folder, config.allow_pickle, progress)


def fetch_model(config: EngineConfig, progress: Progress) -> Path:
    """Make the model of `config` ready: downloaded (going on where a download stopped) and
    converted; its folder.

    Raises `ModelLoadError` when there is no such model, or it is neither here nor reachable.
    """
    return resolve_model(config, progress).folder


def weights_hash(files: ModelFiles) -> str:
    """A hash that tells the weights of two models apart; it samples the files, so it is quick."""
    return sampled_hash(list(files.weights))


def _from_gguf(name: str, path: Path, progress: Progress) -> ModelFiles:
    weights = tuple(gguf_parts(path))
    missing = [part.name for part in weights if not part.is_file()]
    if missing:
        raise ModelLoadError(f"{path}: missing {', '.join(missing)}")
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
        raise ModelLoadError(f"{folder} has no config.json") from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{path} is no JSON object")
    return config


def _weights_in(folder: Path, allow_pickle: bool) -> tuple[Path, ...]:
    found = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("consolidated"))
    if found:
        return tuple(found)
    pickled = sorted(folder.glob("pytorch_model*.bin"))
    if pickled and not allow_pickle:
        raise ModelLoadError(
            f"{folder} has weights only as pickled .bin files, which can run code when read; "
            "use safetensors, or allow it (--allow-pickle) if you trust their source"
        )
    if not pickled:
        raise ModelLoadError(f"{folder} has no safetensors files")
    return tuple(pickled)


def _with_tokenizer(folder: Path, progress: Progress) -> Path:
    """A folder in the cache with the files of `folder` (links to the weights) and a tokenizer.json
    that transformers converts from another format."""
    sources = [folder / name for name in TOKENIZER_SOURCES if (folder / name).is_file()]
    if not sources:
        raise ModelLoadError(f"{folder} has no tokenizer.json nor another tokenizer file")
    key = sampled_hash([folder / "config.json", *sources, *sorted(folder.glob("*.safetensors"))])

    def build(target: Path) -> None:
        from transformers import AutoTokenizer

        progress(f"converting the tokenizer of {folder.name} (once)")
        try:
            AutoTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(target)
        except (OSError, ValueError, ImportError) as error:
            raise ModelLoadError(f"{folder}: cannot convert its tokenizer: {error}") from error
        if not (target / "tokenizer.json").is_file():
            raise ModelLoadError(f"{folder}: its tokenizer has no fast form (tokenizer.json)")
        for path in folder.iterdir():
            if path.is_file() and not (target / path.name).exists():
                (target / path.name).symlink_to(path.resolve())

    return build_once(cache_root() / "tokenizers" / key[:24], progress, build)
