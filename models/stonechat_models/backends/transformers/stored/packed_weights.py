"""Gives transformers a model's packed weights as floats, each computed when it is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from stonechat_models.backends.transformers.longrope import long_config
from stonechat_models.backends.transformers.stored.codes import CodedParts, with_codes
from stonechat_models.backends.transformers.stored.lazy_weight import LazyWeight
from stonechat_models.checkpoint.hf_config import THINKER, HFConfig
from stonechat_models.checkpoint.packed.folder import read_packing, reader_of, stored_files
from stonechat_models.checkpoint.packed.tensors import Packing
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.checkpoint.weight_files import has_usual_names
from stonechat_models.config import EngineConfig


@contextmanager
def packed_source(
    files: ModelFiles,
    folder: Path,
    model_class: Any,
    config: EngineConfig,
    dtype: torch.dtype,
    codes: CodedParts,
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Give a class of transformers, and where its `from_pretrained` finds config and weights.

    Packed weights are given as floats of `dtype`, with a config without quantisation. With `codes`
    the class has these already, and only the other weights are given. Weights that are not packed
    stay with `model_class` and `folder`, if the files there have the names that transformers looks
    for. Raises what `read_packing` raises.
    """
    packing = read_packing(files)
    packing.refuse_own_names()
    changed = long_config(folder, files.config, config) or _thinker(folder, files.config)
    is_found = files.weight_format != "safetensors" or has_usual_names(folder)
    if not codes and (not packing.is_read_here or (not packing.label and is_found)):
        yield model_class, {"pretrained_model_name_or_path": folder, "config": changed}
        return
    plain = changed or AutoConfig.from_pretrained(
        folder, trust_remote_code=config.trust_remote_code, local_files_only=True, dtype=dtype
    )
    for part in (plain, plain.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    with torch.device("meta"):
        empty = model_class.from_config(plain, trust_remote_code=config.trust_remote_code)
    if codes and files.gguf is not None:
        yield _source(with_codes(empty, codes), empty, dict(codes.weights))
        return
    with stored_files(files) as stored:
        weights = _weights(stored, packing, dtype)
        if codes:
            coded = codes.held | {f"{name}.weight" for name in codes.modules}
            rest = {name: weights[name] for name in weights.keys() - coded}
            yield _source(with_codes(empty, codes), empty, rest)
        else:
            yield _source(type(empty), empty, weights)


def _thinker(folder: Path, config: HFConfig) -> Any:
    """Return the config of the part that writes text, if that is a part of the folder's model."""
    if not config.model_type.endswith("_thinker"):
        return None
    whole = AutoConfig.from_pretrained(folder, local_files_only=True)
    return getattr(whole, THINKER, None)


def _source(module_class: Any, empty: Any, weights: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return module_class, {
        "pretrained_model_name_or_path": None,
        "config": empty.config,
        "state_dict": weights,
    }


def _weights(stored: dict[str, Any], packing: Packing, dtype: torch.dtype) -> dict[str, Any]:
    """The weights by their names. None is read yet. `stored`: the file of each stored tensor."""
    read = reader_of(stored)
    plain = {name: stored[name].get_slice(name) for name in stored.keys() - packing.consumed}
    packed = {
        name: LazyWeight(partial(tensor.values, read, dtype))
        for name, tensor in packing.tensors.items()
        if tensor.layout is not None
    }
    return plain | packed
