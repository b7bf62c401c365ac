"""From what the user names as a model to files on disk, and from those to a PyTorch module.

A model is the default one, a `.gguf` file, a local folder, a Hugging Face id, or an alias. Whatever
it is, it becomes a `ModelFiles`: a folder of Hugging Face files beside the weights.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stonechat_models.checkpoint import default_model, hub
from stonechat_models.checkpoint.cache import Progress, build_once, cache_root, sampled_hash
from stonechat_models.checkpoint.gguf.convert import converted_folder
from stonechat_models.checkpoint.gguf.reader import gguf_parts
from stonechat_models.checkpoint.store import resolve_alias
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError

if TYPE_CHECKING:
    import torch
    from torch import nn

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


def weights_hash(files: ModelFiles) -> str:
    """A hash that tells the weights of two models apart; it samples the files, so it is quick."""
    return sampled_hash(list(files.weights))


def load_module(
    files: ModelFiles,
    config: EngineConfig,
    device: "torch.device",
    dtype: "torch.dtype",
    *,
    attn_implementation: str = "sdpa",
    progress: Progress = lambda line: None,
) -> "nn.Module":
    """Load the model's own PyTorch code, unmodified, in eval mode, with its weights on `device`
    (or spread by accelerate when `config.device_map` is set).

    The weights of a GGUF are dequantised to safetensors of `dtype` in the cache the first time.
    Raises `ModelLoadError` when the weights do not fill the module exactly.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = files.folder
    if files.gguf is not None:
        folder = _dequantised_folder(files, files.gguf, dtype, progress)
    try:
        with torch.inference_mode(False):
            module, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attn_implementation,
                device_map=config.device_map or {"": device},
                trust_remote_code=config.trust_remote_code,
                use_safetensors=None if config.allow_pickle else True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        raise ModelLoadError(f"cannot load {files.name}: {error}") from error
    _check_report(files.name, report)
    loaded: nn.Module = module.eval().requires_grad_(False)
    return loaded


def _check_report(name: str, report: dict[str, object]) -> None:
    """Missing or mismatched weights would be filled at random: refuse. Extra ones do no harm."""
    for key in ("missing_keys", "mismatched_keys", "error_msgs"):
        found = report.get(key)
        if isinstance(found, list | set | tuple) and found:
            listed = ", ".join(sorted(map(str, found))[:5])
            raise ModelLoadError(f"{name}: {key.replace('_', ' ')}: {listed}")


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


def _dequantised_folder(
    files: ModelFiles, path: Path, dtype: "torch.dtype", progress: Progress
) -> Path:
    """The cache folder with a GGUF's weights as safetensors of `dtype` beside its config."""

    def build(target: Path) -> None:
        from stonechat_models.checkpoint.gguf.reader import read_gguf
        from stonechat_models.checkpoint.gguf.weights import write_weights

        progress(f"converting the weights of {path.name} to {name} (once)")
        for source in files.folder.iterdir():
            if source.is_file():
                shutil.copy(source, target / source.name)
        write_weights(read_gguf(path), files.config, target, dtype, progress)

    name = str(dtype).removeprefix("torch.")
    return build_once(files.folder.with_name(f"{files.folder.name}-{name}"), progress, build)
