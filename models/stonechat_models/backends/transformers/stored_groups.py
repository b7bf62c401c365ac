"""Keeps packed integers of safetensors folders as they are: GPTQ, AWQ, compressed-tensors, int8."""

import torch
from torch import nn

from stonechat_models.backends.quantization.coded_linear import CodedLinear
from stonechat_models.backends.quantization.codes import Codes, joined
from stonechat_models.backends.quantization.group_codes import (
    Groups,
    bits_of,
    columns_in_groups,
    group_codes,
    scale_dtype,
    with_one_offset,
)
from stonechat_models.backends.quantization.scratch import Scratch
from stonechat_models.backends.transformers.stored_codes import CodedParts, check_product
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.packed.floats import Fp4
from stonechat_models.checkpoint.packed.folder import read_packing, stored_files
from stonechat_models.checkpoint.packed.layouts import IntegerLayout, Parts
from stonechat_models.checkpoint.packed.tensors import PackedTensor, Packing, Read
from stonechat_models.checkpoint.resolve import ModelFiles

CHUNK_ROWS = 2048


def has_groups(packing: Packing) -> bool:
    """Whether `read_groups` can read some of the packed weights."""
    return packing.is_read_here and any(is_group(t) for t in packing.tensors.values())


def read_groups(
    files: ModelFiles,
    empty: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> CodedParts:
    """Read linear layers of `empty`, which is on the meta device, as codes on `device`.

    Those whose numbers the kernels do not have are left out, and so are all other weights. Raises
    `UnsupportedModelError` if a product is wrong, and what `PackedTensor.read` raises.
    """
    parts, scratch, packing = CodedParts(), Scratch(device, dtype), read_packing(files)
    layers = dict(empty.named_modules())
    with stored_files(files) as stored:

        def read(name: str) -> torch.Tensor:
            tensor: torch.Tensor = stored[name].get_tensor(name)
            return tensor

        for i, (target, tensor) in enumerate(packing.tensors.items()):
            if i % 100 == 0:
                progress(f"loading {files.name}: weight {i + 1} of {len(packing.tensors)}")
            name = target.removesuffix(".weight")
            old = layers.get(name)
            if type(old) is not nn.Linear or not is_group(tensor):
                continue
            linear = _linear(tensor, read, old, scratch, dtype, device)
            if linear is not None:
                parts.modules[name] = linear
    return parts


def is_group(tensor: PackedTensor) -> bool:
    """Whether this weight is of integers in groups that share a scale."""
    layout = tensor.layout
    return isinstance(layout, IntegerLayout) and not isinstance(layout, Fp4)


def _linear(
    tensor: PackedTensor,
    read: Read,
    old: nn.Linear,
    scratch: Scratch,
    dtype: torch.dtype,
    device: torch.device,
) -> CodedLinear | None:
    layout = tensor.layout
    assert isinstance(layout, IntegerLayout)
    stored = tensor.read(read)
    if (layout.stored_shape(stored) or tensor.shape) != old.weight.shape:
        return None
    held = {role: part.to(device) for role, part in stored.items()}
    found = _codes(layout, held, old.out_features, device)
    if found is None:
        return None
    codes, order = found

    def weight(rows: torch.Tensor) -> torch.Tensor:
        return layout.floats(stored, rows)

    check_product(CodedLinear([codes], None, scratch, dtype, order), weight, tensor.name)
    return CodedLinear([codes], old.bias, scratch, dtype, order)


def _codes(
    layout: IntegerLayout, parts: Parts, n: int, device: torch.device
) -> tuple[Codes, torch.Tensor | None] | None:
    """The codes of all rows, and the order of their columns if it is not the weight's."""
    chunks: list[Groups] = []
    with device:  # layouts make their index tensors on the default device
        for start in range(0, n, CHUNK_ROWS):
            part = layout.codes(parts, torch.arange(start, min(start + CHUNK_ROWS, n)))
            chunks.append(Groups(part.values, part.scales, part.zeros, part.group_of))
    order = columns_in_groups(chunks[0].group_of, chunks[0].scales.shape[1])
    bits = [bits_of(chunk) for chunk in chunks]
    if order is None or None in bits:
        return None
    most = max(b for b in bits if b is not None)
    dtype = scale_dtype(chunks)
    codes = with_one_offset(joined([group_codes(chunk, order, most, dtype) for chunk in chunks]))
    is_sorted = torch.equal(order, torch.arange(len(order), device=device))
    return codes, None if is_sorted else order
