"""Integers with a scale for each group of columns: GPTQ, AWQ, compressed-tensors and MLX."""

from dataclasses import dataclass

import torch

from stonechat_models.backends.quantization.codes.codes import (
    PLAIN,
    UNIT,
    ZEROS,
    CodeFormat,
    Codes,
    pack_codes,
)

MIN_GROUP = 16
SIGNED_OFFSET = 128
HIGH_BITS = {4: 0, 5: 1, 6: 2, 8: 4}
"""Bits above the low 4, by the bits of a code."""
EXACT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class Groups:
    """A matrix [n, k] of (values - zeros) * scales; see `checkpoint.packed.layouts.Codes`.

    `values` are int8 or other integers from 0 to 255, `scales` and `zeros` float32[n, groups], and
    `group_of` int64[k] has the group of each column.
    """

    values: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    group_of: torch.Tensor


def columns_in_groups(group_of: torch.Tensor, num_groups: int) -> torch.Tensor | None:
    """The order of columns in which each group's are consecutive, int64[k].

    None if the groups differ in size, or a unit of the kernels would have parts of several.
    """
    k = group_of.numel()
    size = k // num_groups
    if k % UNIT or size * num_groups != k or (size % UNIT and size != MIN_GROUP):
        return None
    order = torch.argsort(group_of, stable=True)
    runs = torch.arange(k, device=group_of.device) // size
    return order if torch.equal(group_of[order], runs) else None


def bits_of(groups: Groups) -> int | None:
    """How many bits the kernels' codes need, or None if the numbers do not fit into them."""
    values, zeros = groups.values, groups.zeros
    low, high, offset = int(values.min()), int(values.max()), _offset(values)
    shifted = zeros + offset
    fits = low + offset >= 0 and high + offset <= 255
    if not fits or bool((shifted != shifted.round()).any()):
        return None
    if float(shifted.min()) < 0 or float(shifted.max()) > 255:
        return None
    return 8 if offset else next(bits for bits in HIGH_BITS if high < 1 << bits)


def _offset(values: torch.Tensor) -> int:
    """What is added to signed numbers and to their zeros. It depends on the dtype alone, so that
    all chunks of a matrix have the same."""
    return SIGNED_OFFSET if values.dtype is torch.int8 else 0


def exact_dtype(scales: list[torch.Tensor]) -> torch.dtype:
    """The first of `EXACT_DTYPES` that has all scales of a matrix, given in chunks of rows."""
    return next(d for d in EXACT_DTYPES if all(torch.equal(s.to(d).float(), s) for s in scales))


def group_codes(groups: Groups, order: torch.Tensor, bits: int, dtype: torch.dtype) -> Codes:
    """Pack groups whose columns are put into `order`.

    `bits` are those that `bits_of` returns, `dtype` is that of the scales.
    """
    num_groups, offset = groups.scales.shape[1], _offset(groups.values)
    values = (groups.values[:, order].to(torch.int16) + offset).to(torch.uint8)
    low, high = pack_codes(values, HIGH_BITS[bits])
    format = CodeFormat(f"INT{bits}", ZEROS, HIGH_BITS[bits])
    zeros = (groups.zeros + offset).to(torch.uint8)
    size = values.shape[1] // num_groups
    return Codes(format, low, high, groups.scales.to(dtype).contiguous(), zeros.contiguous(), size)


def with_one_offset(codes: Codes) -> Codes:
    """The same codes without zeros, if all groups have the same."""
    assert codes.extra is not None
    first = int(codes.extra[0, 0])
    if not bool((codes.extra == first).all()):
        return codes
    format = CodeFormat(codes.format.name, PLAIN, codes.format.high_bits, first)
    return Codes(format, codes.low, codes.high, codes.scales, None, codes.group)


def affine_codes(
    values: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor, bits: int
) -> Codes:
    """Codes of values uint8[n, k] of `bits` bits, times scales [n, groups], plus biases.

    Groups are consecutive, and of whole units.
    """
    bits = next(b for b in HIGH_BITS if b >= bits)
    low, high = pack_codes(values, HIGH_BITS[bits])
    format = CodeFormat(f"AFFINE{bits}", ZEROS, HIGH_BITS[bits])
    size = values.shape[1] // scales.shape[1]
    return Codes(format, low, high, scales.contiguous(), -biases.contiguous(), size)
