"""Reads which tensors a model has from the headers of its files. It reads no weights.

From the Hugging Face hub it downloads only config.json and the headers. Only the default model and
adapters are fetched whole.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stonechat_models.checkpoint.adapter.files import Adapter, refuse_adapter_alone
from stonechat_models.checkpoint.adapter.names import locate_adapter, locate_adapters
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.hf_config import (
    QUANTIZATION_FILES,
    HFConfig,
    parse_config,
    read_config,
)
from stonechat_models.checkpoint.hub.errors import not_found, require_network
from stonechat_models.checkpoint.rerankers import read_reranker_files
from stonechat_models.checkpoint.resolve import Located, WeightFormat, locate
from stonechat_models.checkpoint.sentence_transformers import (
    MODULES_FILE,
    SETTINGS_FILE,
    has_embedder_files,
    transformer_folder,
)
from stonechat_models.checkpoint.vision_file import find_vision_file, refuse_vision_file
from stonechat_models.checkpoint.weight_files import weights_in
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import reading

if TYPE_CHECKING:
    from stonechat_models.checkpoint.gguf.reader import GgufFile

SAFETENSORS_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
    "U64": 64, "U32": 32, "U16": 16, "F4": 4,
}  # fmt: skip
FLOAT_NAMES = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor as stored, under its transformers name.

    `type_name` is that of safetensors (F32, BF16, …) or GGUF (Q4_1, …).
    """

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
    config: HFConfig
    tensors: Sequence[TensorHeader]
    weight_format: WeightFormat
    has_modules: bool = False
    """Whether the files of sentence-transformers say how the model makes embeddings."""
    adapters: tuple[Adapter, ...] = ()
    """What is computed beside the weights."""
    image_refusal: str = ""
    """Why a GGUF model takes no images, if its files or the settings say it."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model takes once a backend has loaded it, calculated from its headers, in bytes."""

    weight_bytes: int
    decode_bytes: int
    """Bytes of weights that a decode step of one sequence reads."""
    kv_bytes_per_token: int
    state_bytes: int = 0
    """Bytes of recurrent state per sequence."""


def read_headers(config: EngineConfig, progress: Progress) -> ModelHeaders:
    """Return the headers of the model that `config` names.

    The default model is fetched if it is not in the cache. For a Hugging Face id, only config.json
    and the headers are fetched, and all of its adapters. Raises `ModelLoadError` when the model or
    an adapter does not exist or cannot be read, or an adapter does not fit.
    """
    located = locate(config, progress, only_headers=True)
    merged, adapters = locate_adapter(config, progress), locate_adapters(config, progress)
    path = located.path
    if path is not None and path.is_file():
        headers = _gguf_headers(located, path, config, progress)
    else:
        refuse_vision_file(located.name, config)
        if path is None:
            headers = _hub_headers(located.name, located.revision)
        else:
            headers = _folder_headers(located.name, path, config.allow_pickle)
    for adapter in (*adapters, *filter(None, [merged])):
        _refuse_other_model(headers, adapter)
    return replace(headers, adapters=adapters)


def _refuse_other_model(headers: ModelHeaders, adapter: Adapter) -> None:
    """Raise `ModelLoadError` if the adapter changes layers or shapes that the model does not have.

    A loaded model may have other names for its weights. So only the numbers of layers count where
    a name is not there.
    """
    tensors = {tensor.name: tensor for tensor in headers.tensors}
    numbers = {_layer_number(name) for name in tensors} | {None}
    missing = {
        name
        for name in adapter.layers
        if name not in tensors and _layer_number(name) not in numbers
    }
    adapter.refuse_missing(headers.name, missing)
    for name, layer in adapter.layers.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.type_name not in FLOAT_NAMES:
            continue
        if tensor.shape != layer.shape[::-1]:  # some modules store [in, out]
            adapter.refuse_shape(name, tensor.shape)


def _layer_number(name: str) -> str | None:
    """Return the first number in a weight's name."""
    return next((part for part in name.split(".") if part.isdecimal()), None)


def _gguf_headers(
    located: Located, path: Path, settings: EngineConfig, progress: Progress
) -> ModelHeaders:
    from stonechat_models.checkpoint.gguf.config import config_of
    from stonechat_models.checkpoint.gguf.embedder import embeds
    from stonechat_models.checkpoint.gguf.names import module_name, weights_of, whole_name
    from stonechat_models.checkpoint.gguf.reader import read_gguf

    gguf = read_gguf(path)
    mmproj, refusal = find_vision_file(gguf, located.mmproj, settings, progress, only_headers=True)
    tensors: list[TensorHeader] = []
    with reading(path):
        raw = config_of(gguf)
        if mmproj is not None:
            try:
                raw, tensors = _with_vision(raw, gguf, mmproj)
            except ModelLoadError as error:
                if settings.mmproj is not None:
                    raise
                refusal = str(error)
        config = parse_config(raw, str(path))
        for tensor in weights_of(gguf):
            name = whole_name(config, module_name(gguf, tensor.name))
            num_bytes = tensor.data.nbytes
            tensors.append(TensorHeader(name, tensor.type_name, tensor.shape, num_bytes))
    has_modules = embeds(gguf)
    return ModelHeaders(located.name, config, tensors, "gguf", has_modules, image_refusal=refusal)


def _with_vision(
    text: dict[str, Any], gguf: "GgufFile", path: Path
) -> tuple[dict[str, Any], list[TensorHeader]]:
    """Return the configuration of a model with its vision part, and the headers of that part."""
    from stonechat_models.checkpoint.gguf.composite import composite_config
    from stonechat_models.checkpoint.gguf.mmproj import read_mmproj, tower_weights

    mmproj, headers = read_mmproj(path), list[TensorHeader]()
    with reading(path):
        for weight in tower_weights(mmproj):
            num_bytes = sum(part.data.nbytes for part in weight.parts)
            kind = weight.parts[0].type_name
            headers.append(TensorHeader(weight.name, kind, weight.shape, num_bytes))
        return composite_config(text, gguf, mmproj), headers


def _folder_headers(name: str, folder: Path, allow_pickle: bool) -> ModelHeaders:
    refuse_adapter_alone(folder)
    has_modules, whole = has_embedder_files(folder), folder
    folder = transformer_folder(folder)
    config = read_config(folder / "config.json")
    if not has_modules:
        read_reranker_files(whole, config)  # refuses what is not served
    files = weights_in(folder, allow_pickle)
    is_safe = all(file.suffix == ".safetensors" for file in files)
    read = safetensors_headers if is_safe else _pickle_headers
    tensors = [tensor for file in files for tensor in read(file)]
    weight_format: WeightFormat = "safetensors" if is_safe else "pickle"
    return ModelHeaders(name, config, tensors, weight_format, has_modules)


def _pickle_headers(path: Path) -> list[TensorHeader]:
    import torch

    with reading(path):
        tensors = torch.load(path, map_location="meta", weights_only=True)
        return [
            TensorHeader(name, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.nbytes)
            for name, t in tensors.items()
        ]


def safetensors_headers(path: Path) -> list[TensorHeader]:
    """Return the tensors of a safetensors file. Raises `ModelLoadError` if it is not valid."""
    from safetensors import safe_open

    with reading(path), safe_open(path, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return [
            _tensor(name, str(part.get_dtype()), tuple(part.get_shape()))
            for name, part in slices.items()
        ]


def _tensor(name: str, type_name: str, shape: tuple[int, ...]) -> TensorHeader:
    num_bytes = prod(shape) * SAFETENSORS_BITS.get(type_name, 8) // 8
    return TensorHeader(name, type_name, shape, num_bytes)


def _hub_headers(model: str, revision: str | None) -> ModelHeaders:
    import huggingface_hub

    try:
        require_network()
        path = huggingface_hub.hf_hub_download(model, "config.json", revision=revision)
        metadata = huggingface_hub.get_safetensors_metadata(model, revision=revision)
        if metadata.parameter_count.keys() - FLOAT_NAMES:
            for name in QUANTIZATION_FILES:  # which `read_config` reads beside config.json
                _fetch(model, revision, name)
    except Exception as error:
        raise not_found(model, error) from error
    tensors = [
        _tensor(name, str(info.dtype), tuple(info.shape))
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
    ]
    has_modules = _fetch(model, revision, MODULES_FILE)
    if has_modules and _fetch(model, revision, SETTINGS_FILE):
        has_modules = has_embedder_files(Path(path).parent)
    return ModelHeaders(model, read_config(Path(path)), tensors, "safetensors", has_modules)


def _fetch(model: str, revision: str | None, name: str) -> bool:
    """Fetch a small file. Return whether the model has it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with suppress(EntryNotFoundError):
        hf_hub_download(model, name, revision=revision)
        return True
    return False
