"""Codes of the packed weights of safetensors folders: integers in groups, and small floats.

The integers are those of GPTQ, AWQ, compressed-tensors, int8 and MLX, the floats FP8, MXFP4 and
NVFP4.
"""

import torch

from stonechat_models.backends.quantization.codes.codes import UNIT, Codes, joined
from stonechat_models.backends.quantization.codes.float_codes import float4_codes, float8_codes
from stonechat_models.backends.quantization.codes.group_codes import (
    MIN_GROUP,
    Groups,
    affine_codes,
    bits_of,
    columns_in_groups,
    exact_dtype,
    group_codes,
    with_one_offset,
)
from stonechat_models.checkpoint.packed.floats import Fp4, Fp8
from stonechat_models.checkpoint.packed.layouts import IntegerLayout, Parts, scale_values, spread
from stonechat_models.checkpoint.packed.mlx import Affine
from stonechat_models.checkpoint.packed.tensors import PackedTensor

CHUNK_ROWS = 2048


def can_have_codes(tensor: PackedTensor) -> bool:
    """Whether the headers say that the kernels may have this weight's numbers.

    These are integers or small floats in groups that share a scale, in rows of whole units.
    """
    k, run = tensor.shape[-1], tensor.run or tensor.shape[-1]
    if k % UNIT:
        return False
    if tensor.type_name == "FP8":
        return run % UNIT == 0
    if tensor.type_name == "MXFP4":
        return run == UNIT
    has_type = isinstance(tensor.layout, (IntegerLayout, Affine))
    return has_type and k % run == 0 and (run % UNIT == 0 or run == MIN_GROUP)


def codes_of(
    tensor: PackedTensor, stored: Parts, device: torch.device
) -> tuple[Codes | None, torch.Tensor | None]:
    """The codes of a weight that can have them, on `device`, and the order of their columns.

    The codes are None if the kernels do not have its numbers. The order is None if it is the
    weight's own. A weight of more than two dimensions is read as the matrix of all rows.
    """
    layout, order = tensor.layout, None
    if isinstance(layout, Affine):
        layout, stored = layout.alone(stored)
    parts = {role: part.to(device) for role, part in stored.items()}
    with device:  # layouts make their index tensors on the default device
        if isinstance(layout, Fp8):
            codes = _float8_codes(layout, parts)
        elif isinstance(layout, Fp4):
            codes = _float4_codes(parts)
        elif isinstance(layout, Affine):
            codes = _affine_codes(layout, parts)
        else:
            assert isinstance(layout, IntegerLayout)
            codes, order = _integer_codes(layout, parts, tensor.shape[0])
    return codes, order


def _float8_codes(layout: Fp8, parts: Parts) -> Codes | None:
    weight = parts["weight"]
    if weight.dtype is not torch.float8_e4m3fn:
        return None
    k = layout.shape[-1]
    bits = weight.view(torch.uint8).reshape(-1, k)
    scales, group = torch.ones(len(bits), 1), k
    if "scale" in parts:
        stored, rows = scale_values(parts["scale"]), torch.arange(len(bits))
        scales, group_of = spread(stored, layout.shape, layout.block, rows)
        group = int((group_of == 0).sum())
        if parts["scale"].itemsize == 1:  # exponents of two
            scales = scales.bfloat16()
    return float8_codes(bits, scales, group)


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


def _affine_codes(layout: Affine, parts: Parts) -> Codes:
    chunks, n = [], layout.shape[0]
    for start in range(0, n, CHUNK_ROWS):
        rows = torch.arange(start, min(start + CHUNK_ROWS, n))
        values, scales, biases, _ = layout.read(parts, rows)
        scales, biases = (x.to(parts["scales"].dtype) for x in (scales, biases))
        chunks.append(affine_codes(values, scales, biases, layout.bits))
    return joined(chunks)


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
