"""Keeps packed weights of safetensors folders as they are: integers in groups, and small floats.

The integers are those of GPTQ, AWQ, compressed-tensors and int8, the floats FP8, MXFP4 and NVFP4.
"""

import torch
from torch import nn

from stonechat_models.backends.quantization.coded_linear import CodedLinear
from stonechat_models.backends.quantization.codes import Codes, joined
from stonechat_models.backends.quantization.float_codes import float4_codes, float8_codes
from stonechat_models.backends.quantization.group_codes import (
    Groups,
    bits_of,
    columns_in_groups,
    exact_dtype,
    group_codes,
    with_one_offset,
)
from stonechat_models.backends.quantization.scratch import Scratch
from stonechat_models.backends.transformers.stored_codes import CodedParts, check_product
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.packed.floats import Fp4, Fp8
from stonechat_models.checkpoint.packed.folder import read_packing, stored_files
from stonechat_models.checkpoint.packed.layouts import (
    IntegerLayout,
    Parts,
    scale_values,
    spread,
)
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
    """Whether this weight is of integers or small floats in groups that share a scale."""
    return isinstance(tensor.layout, IntegerLayout | Fp8)


def _linear(
    tensor: PackedTensor,
    read: Read,
    old: nn.Linear,
    scratch: Scratch,
    dtype: torch.dtype,
    device: torch.device,
) -> CodedLinear | None:
    layout = tensor.layout
    assert isinstance(layout, IntegerLayout | Fp8)
    stored = tensor.read(read)
    if (layout.stored_shape(stored) or tensor.shape) != old.weight.shape:
        return None
    held = {role: part.to(device) for role, part in stored.items()}
    order = None
    with device:  # layouts make their index tensors on the default device
        if isinstance(layout, Fp8):
            codes = _float8_codes(layout, held)
        elif isinstance(layout, Fp4):
            codes = _float4_codes(held)
        else:
            codes, order = _integer_codes(layout, held, old.out_features)
    if codes is None:
        return None

    def weight(rows: torch.Tensor) -> torch.Tensor:
        return layout.floats(stored, rows)

    check_product(CodedLinear([codes], None, scratch, dtype, order), weight, tensor.name)
    return CodedLinear([codes], old.bias, scratch, dtype, order)


def _float8_codes(layout: Fp8, parts: Parts) -> Codes | None:
    weight = parts["weight"]
    if weight.dtype is not torch.float8_e4m3fn:
        return None
    n, k = layout.shape
    scales, group = torch.ones(n, 1), k
    if "scale" in parts:
        stored, rows = scale_values(parts["scale"]), torch.arange(n)
        scales, group_of = spread(stored, layout.shape, layout.block, rows)
        group = int((group_of == 0).sum())
        scales = scales[:, : -(-k // group)]
    dtype = exact_dtype([scales])
    return float8_codes(weight.view(torch.uint8), scales.to(dtype), group)


def _float4_codes(parts: Parts) -> Codes | None:
    scale, factor = parts["scale"], None
    if scale.dtype is torch.float8_e4m3fn:
        factor = 1.0
        if "scale_2" in parts:
            factor *= float(parts["scale_2"].float().reshape(-1)[0])
        if "global_scale" in parts:
            factor /= float(parts["global_scale"].float().reshape(-1)[0])
    elif len(parts) > 2:
        return None
    return float4_codes(parts["weight"].view(torch.uint8), scale.view(torch.uint8), factor)


def _integer_codes(
    layout: IntegerLayout, parts: Parts, n: int
) -> tuple[Codes | None, torch.Tensor | None]:
    """The codes of all rows, and the order of their columns if it is not the weight's."""
    chunks: list[Groups] = []
    for start in range(0, n, CHUNK_ROWS):
        part = layout.codes(parts, torch.arange(start, min(start + CHUNK_ROWS, n)))
        chunks.append(Groups(part.values, part.scales, part.zeros, part.group_of))
    order = columns_in_groups(chunks[0].group_of, chunks[0].scales.shape[1])
    bits = [bits_of(chunk) for chunk in chunks]
    if order is None or None in bits:
        return None, None
    most = max(b for b in bits if b is not None)
    dtype = exact_dtype([chunk.scales for chunk in chunks])
    codes = with_one_offset(joined([group_codes(chunk, order, most, dtype) for chunk in chunks]))
    is_sorted = torch.equal(order, torch.arange(len(order)))
    return codes, None if is_sorted else order
