"""Reads matrices of small floats as `Codes`, without a change of any number."""

import torch

from stonechat_models.backends.quantization.codes.codes import (
    FLOAT8_NAN,
    PLAIN,
    SMALL,
    UNIT,
    CodeFormat,
    Codes,
    float_table,
    pack_codes,
)
from stonechat_models.checkpoint.packed.floats import FP4_DOUBLED

FP8 = CodeFormat("FP8", PLAIN, 4, is_float8=True)
MXFP4 = CodeFormat("MXFP4", PLAIN, table=FP4_DOUBLED)
NVFP4 = CodeFormat("NVFP4", SMALL, table=FP4_DOUBLED)
CHUNK_ROWS = 1 << 15
"""Rows of codes that are packed at once."""


def float8_codes(bits: torch.Tensor, scales: torch.Tensor, group: int) -> Codes | None:
    """Codes of float8 (e4m3) numbers, uint8[n, k], times float scales [n, k / group].

    None if the kernels do not have them: one is NaN, or a unit has several scales.
    """
    k = bits.shape[1]
    if k % UNIT or group % UNIT or has_nan(bits):
        return None
    low, high = _packed(bits, FP8.high_bits)
    return Codes(FP8, low, high, scales.contiguous(), None, group)


def float4_codes(packed: torch.Tensor, scales: torch.Tensor, factor: float | None) -> Codes | None:
    """Codes of float4 (e2m1) numbers, uint8[n, k / 2] with the even columns in the low halves.

    Without a `factor`, `scales` uint8[n, groups] are exponents of two, offset by 127, and a group
    has 32 columns. With one, they are the bits of float8 (e4m3) numbers, each multiplied by the
    factor, and a group has 16 columns or a multiple of 32. None if the kernels do not have them.
    The table of the format has doubled numbers, so factors are halved.
    """
    (n, half), groups = packed.shape, scales.shape[1]
    group = 2 * half // groups
    sizes = (UNIT,) if factor is None else (UNIT // 2, group // UNIT * UNIT)
    if 2 * half % UNIT or group * groups != 2 * half or group not in sizes:
        return None
    if factor is not None and has_nan(scales):
        return None
    low, _ = _packed(torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1), 0)
    planes = low, None, scales.contiguous()
    if factor is None:
        return Codes(MXFP4, *planes, None, group, float_table(MXFP4, packed.device))
    extra = torch.full((n, 1), factor / 2, dtype=torch.float32, device=packed.device)
    return Codes(NVFP4, *planes, extra, group, float_table(NVFP4, packed.device))


def _packed(codes: torch.Tensor, high_bits: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`pack_codes` of some rows at a time, which takes less memory."""
    starts = range(0, len(codes), CHUNK_ROWS)
    chunks = [pack_codes(codes[i : i + CHUNK_ROWS], high_bits) for i in starts]
    high = torch.cat([high for _, high in chunks if high is not None]) if high_bits else None
    return torch.cat([low for low, _ in chunks]), high


def has_nan(bits: torch.Tensor) -> bool:
    """Whether a float8 (e4m3) of these bits is NaN."""
    return bool(((bits & FLOAT8_NAN) == FLOAT8_NAN).any())
