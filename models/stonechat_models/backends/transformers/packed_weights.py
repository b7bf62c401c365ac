"""Gives transformers a model's packed weights as floats, each computed when it is loaded."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig

from stonechat_models.backends.transformers.longrope import long_config
from stonechat_models.checkpoint.packed.folder import read_packing
from stonechat_models.checkpoint.packed.tensors import PackedTensor, Packing, Read
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.config import EngineConfig


class LazyWeight:
    """A weight that is computed when it is indexed, as slices of safetensors files are."""

    def __init__(self, tensor: PackedTensor, read: Read, dtype: torch.dtype) -> None:
        self._tensor = tensor
        self._read = read
        self._dtype = dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Return the weight, or the part of it that `index` names."""
        return self._tensor.values(self._read, self._dtype)[index]


@contextmanager
def packed_source(
    files: ModelFiles, folder: Path, model_class: Any, config: EngineConfig, dtype: torch.dtype
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Give a class of transformers, and where its `from_pretrained` finds config and weights.

    For packed weights these are a class, a config without quantisation, and floats of `dtype`. For
    others they are `model_class` and `folder`. Raises what `read_packing` raises.
    """
    packing = read_packing(files)
    changed = long_config(folder, files.config, config)
    if not packing.label or not packing.is_read_here:
        yield model_class, {"pretrained_model_name_or_path": folder, "config": changed}
        return
    plain = changed or AutoConfig.from_pretrained(
        folder, trust_remote_code=config.trust_remote_code, local_files_only=True
    )
    for part in (plain, plain.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    with torch.device("meta"):
        empty = model_class.from_config(plain, trust_remote_code=config.trust_remote_code)
    with ExitStack() as stack:
        stored: dict[str, Any] = {}
        for path in files.weights:
            file = stack.enter_context(safe_open(path, framework="pt"))
            stored |= dict.fromkeys(file.keys(), file)
        weights = _weights(stored, packing, dtype)
        yield (
            type(empty),
            {
                "pretrained_model_name_or_path": None,
                "config": empty.config,
                "state_dict": weights,
            },
        )


def _weights(stored: Mapping[str, Any], packing: Packing, dtype: torch.dtype) -> dict[str, Any]:
    """The weights by their names. None is read yet. `stored`: the file of each stored tensor."""

    def read(name: str) -> torch.Tensor:
        tensor: torch.Tensor = stored[name].get_tensor(name)
        return tensor

    plain = {name: stored[name].get_slice(name) for name in stored.keys() - packing.consumed}
    packed = {name: LazyWeight(tensor, read, dtype) for name, tensor in packing.tensors.items()}
    return plain | packed
