"""A Triton kernel that multiplies a few rows by quantised weights as they are stored.

It reads each code once, without tensor cores. Integers are multiplied as such: each would otherwise
take several instructions to become a float. See `codes.py` for the planes.
"""

import triton
import triton.language as tl

from stonechat_models.backends.quantization.codes.code_kernels import (
    FLOAT8,
    INTEGERS,
    WORDS,
    half_number,
    scales_and_lows,
)
from stonechat_models.hardware.dependent_launch import wait_for_inputs


@triton.jit
def looked_up(codes, t0: tl.constexpr, t1: tl.constexpr, t2: tl.constexpr, t3: tl.constexpr):
    """The bytes t0 to t3 [16] at four codes of 4 bits, one in the low half of each byte."""
    result = codes & 0
    for i in tl.static_range(4):
        code = (codes >> (8 * i)) & 15
        upper = tl.where((code & 4) == 0, t2, t3)
        word = tl.where((code & 8) == 0, tl.where((code & 4) == 0, t0, t1), upper)
        result = result | (((word >> ((code & 3) * 8)) & 255) << (8 * i))
    return result


@triton.jit
def high_bytes(high, odd: tl.constexpr, HIGH_BITS: tl.constexpr):
    """The upper bits of the four even or odd codes of each word, in place in four bytes."""
    bits = high.to(tl.int32)
    if HIGH_BITS == 4:
        result = (bits & 0x0F0F0F0F) << 4 if odd == 0 else bits & -0x0F0F0F10
    elif HIGH_BITS == 2:
        bits = (bits & (0x3333 << (2 * odd))) << (4 - 2 * odd)
        bits = (bits | (bits << 8)) & 0x03300330
        result = (bits | (bits << 4)) & 0x30303030
    else:
        result = (((bits >> odd) & 0x55) * 0x00410410) & 0x10101010
    return result


@triton.jit
def dot2(codes, x, total, UPPER: tl.constexpr, NATIVE: tl.constexpr):
    """`total` plus the products of two unsigned bytes with two signed numbers of 16 bits.

    The bytes are the upper or the lower two of `codes`. NATIVE: in one instruction of NVIDIA's.
    """
    if NATIVE:
        codes, x = tl.broadcast(codes, x)
        codes, total = tl.broadcast(codes, total)
        if UPPER:
            return tl.inline_asm_elementwise(
                "dp2a.hi.s32.u32 $0, $1, $2, $3;",
                "=r,r,r,r",
                [x, codes, total],
                dtype=tl.int32,
                is_pure=True,
                pack=1,
            )
        return tl.inline_asm_elementwise(
            "dp2a.lo.s32.u32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [x, codes, total],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    first: tl.constexpr = 16 if UPPER else 0
    low = ((codes >> first) & 255) * ((x << 16) >> 16)
    return total + low + ((codes >> (first + 8)) & 255) * (x >> 16)


@triton.jit
def rounded_pair(a, b, inverse):
    """Two numbers times `inverse`, rounded to integers of 16 bits, in one word."""
    one: tl.constexpr = 12582912.0  # its lowest bit of mantissa is 1
    a = (a * inverse + one).to(tl.int32, bitcast=True)
    b = (b * inverse + one).to(tl.int32, bitcast=True)
    return (a & 0xFFFF) | (b << 16)


@triton.jit
def larger(a, b):
    """The larger of |a| and |b|; NaN if one is."""
    return tl.maximum(tl.abs(a), tl.abs(b), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def float8_products(codes, x0, x1, x2, x3):
    """The sum of x0 to x3 times the float8 numbers in the four bytes of a word, divided by 256.

    The numbers are made as in `float8_number`, two at a time.
    """
    even = ((codes & 0x007F007F) << 7) | ((codes & 0x00800080) << 8)
    codes = codes >> 8
    odd = ((codes & 0x007F007F) << 7) | ((codes & 0x00800080) << 8)
    total = half_number(even) * x0 + half_number(odd) * x1
    return total + half_number(even >> 16) * x2 + half_number(odd >> 16) * x3


@triton.jit
def over_words(values):
    """Sums [a, b, units] of values [a, b, words]."""
    units: tl.constexpr = values.shape[2] // WORDS
    return tl.sum(tl.reshape(values, [values.shape[0], values.shape[1], units, WORDS]), 3)


@triton.jit(do_not_specialize=["num_rows"])
def rows_kernel(
    x,  # [num_rows, 32 * UNITS]
    low,  # planes of the codes
    high,
    scales,
    extra,
    bias,  # [size]
    output,  # [num_rows, size]
    num_rows,
    size,  # rows of the weight
    stride_x,  # elements from one row to the next
    stride_output,
    UNITS: tl.constexpr,
    UNITS_PER_SCALE: tl.constexpr,
    HALVES: tl.constexpr,
    HIGH_BITS: tl.constexpr,
    SCALING: tl.constexpr,
    OFFSET: tl.constexpr,
    KIND: tl.constexpr,
    TABLE_0: tl.constexpr,
    TABLE_1: tl.constexpr,
    TABLE_2: tl.constexpr,
    TABLE_3: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    NATIVE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (part): output[:, part] = x weight[part]^T + bias[part].

    The 8 numbers of x that belong to a word of codes become integers of 16 bits with a common
    scale, far finer than bfloat16, and their products with the codes are exact. With float8 codes,
    both are multiplied as float32. Dimensions of the tensors: rows of x, rows of the weight, words
    or units.
    """
    wait_for_inputs(EARLY)
    first = tl.program_id(0) * BLOCK_N
    m = tl.arange(0, BLOCK_M)[:, None, None]
    n = (first + tl.arange(0, BLOCK_N))[None, :, None]
    words = tl.arange(0, BLOCK_UNITS * WORDS)[None, None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N, BLOCK_UNITS], tl.float32)
    for start in range(0, UNITS, BLOCK_UNITS):
        word = start * WORDS + words
        is_word = word < UNITS * WORDS
        row = n.to(tl.int64) * (UNITS * WORDS)
        low_words = tl.load(low + row + word, mask=(n < size) & is_word, other=0)
        even = low_words & 0x0F0F0F0F
        odd = (low_words >> 4) & 0x0F0F0F0F
        if HIGH_BITS > 0:  # written so that the compiler lets each lane load the words of one unit
            place = row + word // WORDS * WORDS + word % WORDS
            high_words = tl.load(high + place, mask=(n < size) & is_word, other=0)
            even = even | high_bytes(high_words, 0, HIGH_BITS)
            odd = odd | high_bytes(high_words, 1, HIGH_BITS)
        if KIND != INTEGERS and KIND != FLOAT8:
            even = looked_up(even, TABLE_0, TABLE_1, TABLE_2, TABLE_3)
            odd = looked_up(odd, TABLE_0, TABLE_1, TABLE_2, TABLE_3)
        source = x + m * stride_x + word // WORDS * 32 + word % WORDS
        is_x = (m < num_rows) & is_word
        x0 = tl.load(source, mask=is_x, other=0.0).to(tl.float32)
        x1 = tl.load(source + 4, mask=is_x, other=0.0).to(tl.float32)
        x2 = tl.load(source + 8, mask=is_x, other=0.0).to(tl.float32)
        x3 = tl.load(source + 12, mask=is_x, other=0.0).to(tl.float32)
        x4 = tl.load(source + 16, mask=is_x, other=0.0).to(tl.float32)
        x5 = tl.load(source + 20, mask=is_x, other=0.0).to(tl.float32)
        x6 = tl.load(source + 24, mask=is_x, other=0.0).to(tl.float32)
        x7 = tl.load(source + 28, mask=is_x, other=0.0).to(tl.float32)
        unit = start + tl.arange(0, BLOCK_UNITS)[None, None, :]
        is_unit = (n < size) & (unit < UNITS)
        if KIND == FLOAT8:
            products = float8_products(even, x0, x2, x4, x6)
            products += float8_products(odd, x1, x3, x5, x7)
            step = 256.0
        else:
            peak = larger(
                larger(larger(x0, x1), larger(x2, x3)), larger(larger(x4, x5), larger(x6, x7))
            )
            step = peak * (1.0 / 32512.0)
            inverse = 32512.0 / tl.where(peak == 0.0, 1.0, peak)
            even_x, odd_x = rounded_pair(x0, x2, inverse), rounded_pair(x1, x3, inverse)
            upper_even_x, upper_odd_x = rounded_pair(x4, x6, inverse), rounded_pair(x5, x7, inverse)
            none = even_x & 0
            ones = none + 0x01010101
            products = dot2(odd, odd_x, dot2(even, even_x, none, False, NATIVE), False, NATIVE)
            sums = dot2(ones, odd_x, dot2(ones, even_x, none, False, NATIVE), False, NATIVE)
            if HALVES == 2:
                scale, subtrahend = scales_and_lows(
                    scales,
                    extra,
                    n.to(tl.int64),
                    unit,
                    is_unit,
                    0,
                    UNITS,
                    UNITS_PER_SCALE,
                    HALVES,
                    SCALING,
                    OFFSET,
                )
                total += scale * over_words(products.to(tl.float32) * step)
                total -= subtrahend * over_words(sums.to(tl.float32) * step)
                products, sums = none, none
            products = dot2(even, upper_even_x, products, True, NATIVE)
            products = dot2(odd, upper_odd_x, products, True, NATIVE)
            sums = dot2(ones, upper_even_x, sums, True, NATIVE)
            sums = dot2(ones, upper_odd_x, sums, True, NATIVE)
        scale, subtrahend = scales_and_lows(
            scales,
            extra,
            n.to(tl.int64),
            unit,
            is_unit,
            HALVES - 1,
            UNITS,
            UNITS_PER_SCALE,
            HALVES,
            SCALING,
            OFFSET,
        )
        total += scale * over_words(products.to(tl.float32) * step)
        if KIND != FLOAT8:
            total -= subtrahend * over_words(sums.to(tl.float32) * step)
    result = tl.sum(total, 2)
    rows_of_x = tl.arange(0, BLOCK_M)[:, None]
    columns = (first + tl.arange(0, BLOCK_N))[None, :]
    if HAS_BIAS:
        result += tl.load(bias + columns, mask=columns < size, other=0.0).to(tl.float32)
    tl.store(
        output + rows_of_x.to(tl.int64) * stride_output + columns,
        result.to(output.dtype.element_ty),
        mask=(rows_of_x < num_rows) & (columns < size),
    )
