"""Reads which tensors a model has from the headers of its files. It reads no weights.

From the Hugging Face hub it downloads only config.json and the headers. Only the default model is
fetched whole.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from stonechat_models.checkpoint import default_model
from stonechat_models.checkpoint.aliases import resolve_alias
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.resolve import DEFAULT_NAMES
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError

MAX_HEADER_BYTES = 100 << 20
SAFETENSORS_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor as stored. `type_name` is that of safetensors (F32, BF16, …) or GGUF (Q4_1, …)."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class ModelHeaders:
    """A model's config.json and its tensors."""

    name: str
    config: Mapping[str, Any]
    tensors: Sequence[TensorHeader]
    is_gguf: bool


def read_headers(config: EngineConfig, progress: Progress) -> ModelHeaders:
    """Return the headers of the model that `config` names.

    The default model is fetched if it is not in the cache. For a Hugging Face id, only config.json
    and the headers are fetched. Raises `ModelLoadError` when the model does not exist or cannot be
    read.
    """
    config = replace(config, model=resolve_alias(config.model))
    if config.model in DEFAULT_NAMES and not Path(config.model or ".missing").is_dir():
        return _gguf_headers(default_model.NAME, default_model.fetch_default_model(progress))
    path = Path(config.model).expanduser()
    if path.is_dir():
        return _folder_headers(path.resolve().name, path)
    if path.is_file() and path.suffix == ".gguf":
        return _gguf_headers(path.stem, path)
    if config.model.endswith(".gguf"):
        raise ModelLoadError(
            f"{config.model} is not on this machine: download it and name the path of the file"
        )
    return _hub_headers(config.model, config.revision)


def _gguf_headers(name: str, path: Path) -> ModelHeaders:
    from stonechat_models.checkpoint.gguf.config import config_of
    from stonechat_models.checkpoint.gguf.reader import read_gguf

    gguf = read_gguf(path)
    tensors = [
        TensorHeader(tensor.name, tensor.type_name, tensor.shape, tensor.data.nbytes)
        for tensor in gguf.tensors.values()
    ]
    return ModelHeaders(name, config_of(gguf), tensors, is_gguf=True)


def _folder_headers(name: str, folder: Path) -> ModelHeaders:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {folder / 'config.json'}: {error}") from error
    files = [p for p in folder.glob("*.safetensors") if not p.name.startswith("consolidated")]
    if not files:
        raise ModelLoadError(f"{folder} has no safetensors files; name a model that has them")
    tensors = [tensor for path in sorted(files) for tensor in safetensors_headers(path)]
    return ModelHeaders(name, config, tensors, is_gguf=False)


def safetensors_headers(path: Path) -> list[TensorHeader]:
    """Return the tensors of a safetensors file. Raises `ModelLoadError` if it is not valid."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {size} bytes is too large")
            header = json.loads(file.read(size))
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
        return [
            _tensor(name, entry["dtype"], tuple(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelLoadError(
            f"{path} is not a valid safetensors file; download it again: {error}"
        ) from error


def _tensor(name: str, type_name: str, shape: tuple[int, ...]) -> TensorHeader:
    num_bytes = prod(shape) * SAFETENSORS_BITS.get(type_name, 8) // 8
    return TensorHeader(name, type_name, shape, num_bytes)


def _hub_headers(model: str, revision: str | None) -> ModelHeaders:
    import huggingface_hub as hub

    try:
        folder = hub.snapshot_download(model, revision=revision, local_files_only=True)
        if any(Path(folder).glob("*.safetensors")):
            return _folder_headers(model, Path(folder))
    except (OSError, ValueError):
        pass  # not in the local cache
    try:
        path = hub.hf_hub_download(model, "config.json", revision=revision)
        metadata = hub.get_safetensors_metadata(model, revision=revision)
    except Exception as error:  # the library raises many types; all mean the same here
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelLoadError(
            f"{model} is not a local folder or .gguf file, and the Hugging Face hub did not return "
            f"its headers (check the name, your access and the network): {reason}"
        ) from error
    tensors = [
        _tensor(name, str(info.dtype), tuple(info.shape))
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
    ]
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    return ModelHeaders(model, config, tensors, is_gguf=False)
