"""Triton kernels that dequantise weights as they are stored; see `codes.py`.

`code_rows_kernel.py` has the kernel that multiplies by them.
"""

import triton
import triton.language as tl

from stonechat_models.hardware.dependent_launch import wait_for_inputs

WORDS = tl.constexpr(4)
PLAIN, ZEROS, PAIRS, SIGNED, SMALL = (tl.constexpr(i) for i in range(5))
INTEGERS, TABLE, FLOAT4, FLOAT8 = (tl.constexpr(i) for i in range(4))
"""KIND: what codes are. FLOAT4 has a table, but its numbers follow from the bits."""


@triton.jit
def fp4_doubled(codes):
    """Twice the numbers of FP4 codes: their bits in a float16 stand for 2**-15 times that."""
    bits = ((codes & 7) << 9) | ((codes & 8) << 12)
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 32768.0


@triton.jit
def half_number(bits):
    """float32 of the float16 in the lowest 16 bits."""
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def float8_number(bits):
    """float32 of a float8 (e4m3) in the lowest 8 bits of an int32, on any card.

    The float16 with the same mantissa and exponent has another bias, and stands for 2**-8 times
    the number, also if it is subnormal.
    """
    return half_number(((bits & 127) << 7) | ((bits & 128) << 8)) * 256.0


@triton.jit
def scales_and_lows(
    scales,
    extra,
    row,  # int64, of any shape
    unit,  # of a shape that broadcasts with that of row
    inside,
    half: tl.constexpr,  # of the unit, if there are scales for 16 weights
    UNITS: tl.constexpr,  # of a row
    UNITS_PER_SCALE: tl.constexpr,
    HALVES: tl.constexpr,
    SCALING: tl.constexpr,
    OFFSET: tl.constexpr,
    UNITS_PER_FACTOR: tl.constexpr = 8,
):
    """float32 scales and lows of units: a weight is scale * code - low."""
    if SCALING == PAIRS:
        pair = tl.load(scales + row * UNITS + unit, mask=inside, other=0).to(tl.int32)
        factors = tl.load(extra + row * (UNITS // 8) + unit // 8, mask=inside, other=0)
        scale = (pair & 255).to(tl.float32) * half_number(factors)
        low = ((pair >> 8) & 255).to(tl.float32) * half_number(factors >> 16)
    elif SCALING == SIGNED:
        block = row * (UNITS // UNITS_PER_FACTOR) + unit // UNITS_PER_FACTOR
        factor = tl.load(extra + block, mask=inside, other=0)
        place = row * (UNITS * HALVES) + unit * HALVES + half
        scale = tl.load(scales + place, mask=inside, other=0).to(tl.float32) * factor.to(tl.float32)
        low = scale * OFFSET
    else:  # PLAIN, ZEROS or SMALL
        if HALVES == 2:
            place = row * (UNITS * 2) + unit * 2 + half
        else:
            per_row: tl.constexpr = (UNITS + UNITS_PER_SCALE - 1) // UNITS_PER_SCALE
            place = row * per_row + unit // UNITS_PER_SCALE
        stored = tl.load(scales + place, mask=inside, other=0)
        if SCALING == SMALL:
            factor = tl.load(extra + row, mask=inside, other=0.0)
            scale = float8_number(stored.to(tl.int32)) * factor
        elif scales.dtype.element_ty == tl.uint8:
            scale = tl.exp2(stored.to(tl.float32) - 128.0)
        else:
            scale = stored.to(tl.float32)
        if SCALING == ZEROS:
            low = tl.load(extra + place, mask=inside, other=0).to(tl.float32)
            if extra.dtype.element_ty == tl.uint8:
                low = scale * low
        else:
            low = scale * OFFSET
    return scale, low


@triton.jit
def dequantised_tile(
    low,
    high,
    scales,
    extra,
    table,
    row,  # int64[BLOCK_N]
    is_row,
    start,  # first unit
    UNITS: tl.constexpr,
    UNITS_PER_SCALE: tl.constexpr,
    HALVES: tl.constexpr,
    HIGH_BITS: tl.constexpr,
    SCALING: tl.constexpr,
    OFFSET: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Weights [BLOCK_N, 32 * BLOCK_UNITS], beginning with the unit `start`; zeros outside."""
    rows = row[:, None, None]
    unit = start + tl.arange(0, BLOCK_UNITS)[None, :, None]
    inside = is_row[:, None, None] & (unit < UNITS)
    place = rows * (UNITS * WORDS) + unit * WORDS + tl.arange(0, WORDS)[None, None, :]
    low_words = tl.load(low + place, mask=inside, other=0)
    high_words = low_words
    if HIGH_BITS > 0:
        high_words = tl.load(high + place, mask=inside, other=0)
    nibble = tl.arange(0, 8)[None, None, :, None]
    codes = (low_words[:, :, None, :] >> (nibble * 4)) & 15
    if HIGH_BITS > 0:
        upper = high_words[:, :, None, :].to(tl.int32) >> (nibble * HIGH_BITS)
        codes = codes | ((upper & ((1 << HIGH_BITS) - 1)) << 4)
    scale, subtrahend = scales_and_lows(
        scales, extra, rows, unit, inside, 0, UNITS, UNITS_PER_SCALE, HALVES, SCALING, OFFSET
    )
    scale, subtrahend = scale[:, :, None, :], subtrahend[:, :, None, :]
    if HALVES == 2:
        second, second_subtrahend = scales_and_lows(
            scales, extra, rows, unit, inside, 1, UNITS, UNITS_PER_SCALE, HALVES, SCALING, OFFSET
        )
        scale = tl.where(nibble < 4, scale, second[:, :, None, :])
        subtrahend = tl.where(nibble < 4, subtrahend, second_subtrahend[:, :, None, :])
    if KIND == FLOAT8:
        values = float8_number(codes) * scale
    elif KIND == FLOAT4:
        values = fp4_doubled(codes) * scale
    elif KIND == TABLE:
        values = tl.load(table + codes) * scale
    else:
        values = codes.to(tl.float32) * scale - subtrahend
    return tl.reshape(values.to(DTYPE), [BLOCK_N, 32 * BLOCK_UNITS])


@triton.jit(do_not_specialize=["num_rows", "first"])
def dequantise_kernel(
    index,  # int64[num_rows]: the rows, if HAS_INDEX
    low,
    high,
    scales,
    extra,
    table,
    output,  # [num_rows, 32 * UNITS], contiguous
    num_rows,
    first,  # row of the weight that is the first one, without an index
    UNITS: tl.constexpr,
    UNITS_PER_SCALE: tl.constexpr,
    HALVES: tl.constexpr,
    HIGH_BITS: tl.constexpr,
    SCALING: tl.constexpr,
    OFFSET: tl.constexpr,
    KIND: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (rows, units): weights of rows in the dtype of `output`."""
    wait_for_inputs(EARLY)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = n < num_rows
    row = (first + n).to(tl.int64)
    if HAS_INDEX:
        row = tl.load(index + n, mask=is_row, other=0)
    start = tl.program_id(1) * BLOCK_UNITS
    weights = dequantised_tile(
        low,
        high,
        scales,
        extra,
        table,
        row,
        is_row,
        start,
        UNITS,
        UNITS_PER_SCALE,
        HALVES,
        HIGH_BITS,
        SCALING,
        OFFSET,
        KIND,
        BLOCK_N,
        BLOCK_UNITS,
        output.dtype.element_ty,
    )
    k = start * 32 + tl.arange(0, 32 * BLOCK_UNITS)
    tl.store(
        output + n.to(tl.int64)[:, None] * (UNITS * 32) + k[None, :],
        weights,
        mask=is_row[:, None] & (k < UNITS * 32)[None, :],
    )
