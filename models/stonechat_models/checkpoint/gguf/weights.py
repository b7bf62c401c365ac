"""Writes a GGUF file's weights as safetensors under transformers' names, one tensor at a time.

Only the model's own PyTorch code needs this. The compiled path reads the file's quantised weights
directly. The conversion needs memory for one shard (`SHARD_BYTES`) and the largest parameter.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.gguf.architecture import Merge
from stonechat_models.checkpoint.gguf.config import architecture_of
from stonechat_models.checkpoint.gguf.layouts import split_rope_pairs
from stonechat_models.checkpoint.gguf.names import PERMUTED, Place, place_of, weights_of, whole_name
from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufTensor
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.model_file import reading

if TYPE_CHECKING:
    import torch

Values = Callable[[], np.ndarray]
"""Computes a parameter when it is called, as float32."""
SHARD_BYTES = 1 << 30
INDEX_NAME = "model.safetensors.index.json"


def write_weights(
    gguf: GgufFile,
    config: HFConfig,
    folder: Path,
    dtype: "torch.dtype",
    progress: Progress,
    others: Iterable[tuple[str, Values]] = (),
) -> None:
    """Fill `folder` with safetensors shards of `dtype` and their index.

    `others` are parameters that no tensor of `gguf` makes.
    Raises `ModelLoadError` for tensors that do not fit the config, and its subclass
    `UnsupportedModelError` for one that the model does not have or whose type cannot be converted.
    """
    import torch
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    shard_bytes = num_bytes = number = 0

    def flush() -> None:
        nonlocal shard, shard_bytes, number
        number += 1
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard, shard_bytes = {}, 0

    tower = ((name, values()) for name, values in others)
    for name, values in chain(_all_parameters(gguf, config, progress), tower):
        weight = torch.from_numpy(np.require(values, np.float32, ["C", "W"])).to(dtype)
        shard[name] = weight
        shard_bytes += weight.nbytes
        num_bytes += weight.nbytes
        if shard_bytes >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    content = {"metadata": {"total_size": num_bytes}, "weight_map": index}
    (folder / INDEX_NAME).write_text(json.dumps(content))


def _all_parameters(
    gguf: GgufFile, config: HFConfig, progress: Progress
) -> Iterator[tuple[str, np.ndarray]]:
    tensors = weights_of(gguf)
    for i, tensor in enumerate(tensors):
        if i % 100 == 0:
            progress(f"converting {gguf.path.name}: tensor {i + 1} of {len(tensors)}")
        with reading(gguf.path):
            for name, values in _parameters(gguf, config, tensor):
                yield whole_name(config, name), values()
    for name, value in architecture_of(gguf).extra(gguf):
        yield whole_name(config, name), value


def lazy_parameters(
    gguf: GgufFile, config: HFConfig, but: Collection[str] = ()
) -> Iterator[tuple[str, Values]]:
    """Yield the names of all parameters, and what computes them. Raises what `write_weights` does.

    What is called may raise that too. The parameters of the tensors `but` are left out.
    """
    for tensor in weights_of(gguf):
        if tensor.name in but:
            continue
        with reading(gguf.path):
            for name, values in _parameters(gguf, config, tensor):
                yield whole_name(config, name), values
    for name, value in architecture_of(gguf).extra(gguf):
        yield whole_name(config, name), partial(np.asarray, value)


def stored_rows(gguf: GgufFile, config: HFConfig, tensor: GgufTensor) -> np.ndarray | None:
    """Return a tensor's bytes uint8[n, bytes of a row], in the order of the parameter's rows.

    None for one that is no matrix, or whose parameter has other rows.
    """
    place, architecture = place_of(gguf, tensor.name), architecture_of(gguf)
    if place.is_expert or place.merge is not None or place.name in architecture.layouts:
        return None
    if len(tensor.shape) != 2:
        return None
    return _ordered(gguf, config, place, tensor.data)


def _parameters(
    gguf: GgufFile, config: HFConfig, tensor: GgufTensor
) -> Iterator[tuple[str, Values]]:
    """Yield the names of the parameters that a tensor makes, and what computes them."""
    place = place_of(gguf, tensor.name)
    if place.is_expert:
        for i in range(tensor.shape[0]):
            yield place.target.format(i), partial(dequantize, tensor, i)
    elif place.merge is None:
        yield place.target, partial(_values, gguf, config, tensor, place)
    elif place.merge.parts[0] == place.name:
        names = [tensor.name.removesuffix(place.name) + part for part in place.merge.parts]
        missing = [name for name in names if name not in gguf.tensors]
        if missing:
            raise ModelLoadError(
                f"{gguf.path.name} has no tensor {missing[0]}; download the file again"
            )
        parts = [gguf.tensors[name] for name in names]
        yield place.target, partial(_joined, place.merge, parts, config)


def _joined(merge: Merge, parts: list[GgufTensor], config: HFConfig) -> np.ndarray:
    return merge.join([dequantize(part) for part in parts], config)


def _values(gguf: GgufFile, config: HFConfig, tensor: GgufTensor, place: Place) -> np.ndarray:
    architecture, values = architecture_of(gguf), dequantize(tensor)
    layout = architecture.layouts.get(place.name)
    if layout is not None:
        return layout(values, config)
    if architecture.norm_offset and place.name.endswith("norm.weight"):
        offset = 0.0 if place.name in architecture.plain_norms else architecture.norm_offset
        return values - np.float32(offset)
    return _ordered(gguf, config, place, values)


def _ordered(gguf: GgufFile, config: HFConfig, place: Place, rows: np.ndarray) -> np.ndarray:
    """Return the rows of a tensor without a layout in the order of its parameter's."""
    if not architecture_of(gguf).permuted_rope or place.name not in PERMUTED:
        return rows
    is_query = place.name.startswith("attn_q")
    return split_rope_pairs(rows, config.num_heads if is_query else config.num_kv_heads)


def dequantize(tensor: GgufTensor, index: int | None = None) -> np.ndarray:
    """Return the values of a tensor, or of its slice `index`, as float32."""
    data = tensor.data if index is None else tensor.data[index]
    shape = tensor.shape if index is None else tensor.shape[1:]
    if tensor.type_name in ("F32", "F16"):
        values = data.view(np.float32 if tensor.type_name == "F32" else np.float16)
    else:
        values = _dequantized(tensor, data)
    # Float32 values are a read-only view of the file.
    result: np.ndarray = np.require(values, np.float32, ["C", "W"]).reshape(shape)
    return result


def _dequantized(tensor: GgufTensor, data: np.ndarray) -> np.ndarray:
    import gguf  # takes tens of milliseconds, and most tensors that come here are floats

    try:
        values: np.ndarray = gguf.dequantize(data, gguf.GGMLQuantizationType[tensor.type_name])
    except (NotImplementedError, KeyError) as error:
        raise UnsupportedModelError(
            f"{tensor.name}: weights of type {tensor.type_name} cannot be converted; "
            "use a file with another quantisation"
        ) from error
    return values
