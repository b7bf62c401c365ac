"""Multiplies some rows by quantised weights: by tensor cores, and dequantised in registers.

The sum over the inputs may have any order. Here it is the one in which each lane dequantises what
it then multiplies, so that no weight moves from lane to lane: a lane reads a unit of codes in 16
bytes, and the inputs are put into the same order. See `codes.py` for the planes.
"""

import triton
import triton.language as tl

from stonechat_models.backends.quantization.codes.code_kernels import (
    FLOAT8,
    INTEGERS,
    WORDS,
    scales_and_lows,
)
from stonechat_models.backends.quantization.codes.code_rows_kernel import high_bytes
from stonechat_models.backends.transformers.attention.triton_tile import dot
from stonechat_models.backends.transformers.fused.row_products.some_rows_kernel import (
    is_last_part,
    load_columns,
    sum_of_parts,
)
from stonechat_models.hardware.dependent_launch import prefetch_rows, wait_for_inputs

FLOAT8_FACTOR = tl.constexpr(2.0**120)
"""A float8 (e4m3) is this times the float32 with its exponent and mantissa."""


@triton.jit
def chosen_bytes(a, b, selector, NATIVE: tl.constexpr):
    """A word of four bytes of a and b: nibble i of `selector` says which, from 4 on one of b.

    NATIVE: in one instruction of NVIDIA's.
    """
    if NATIVE:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [a, b, selector],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    result = a & 0
    for i in tl.static_range(4):
        place = (selector >> (4 * i)) & 7
        word = tl.where(place < 4, a, b)
        result = result | (((word >> ((place & 3) * 8)) & 255) << (8 * i))
    return result


@triton.jit
def with_exponent(
    codes, BYTE: tl.constexpr, PLACE: tl.constexpr, EXPONENT: tl.constexpr, NATIVE: tl.constexpr
):
    """A byte of each word, moved to the byte PLACE of the constant EXPONENT.

    NATIVE: the grid has no third dimension, so ctaid.z is 0. The compiler does not know that, and
    keeps the constant in a register. Else it writes it into each instruction, and loads selectors.
    """
    if NATIVE:
        selector: tl.constexpr = 0x7444 ^ ((4 ^ BYTE) << (4 * PLACE))
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 constant;
            mov.u32 constant, %ctaid.z;
            or.b32 constant, constant, $2;
            prmt.b32 $0, $1, constant, $3;
            }""",
            "=r,r,r,r",
            [codes, EXPONENT, selector],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    return (((codes >> (8 * BYTE)) & 255) << (8 * PLACE)) | EXPONENT


@triton.jit
def dequantised(
    codes,  # four in the bytes of a word
    BYTE: tl.constexpr,
    scale,
    low,
    KIND: tl.constexpr,
    IS_WIDE: tl.constexpr,
    DTYPE: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """The weights with the codes in a byte of each word.

    A code becomes the lowest bits of a float32 whose exponent is constant: 128 + code, or if it
    IS_WIDE 32768 + code. `low` has that constant times the scale in it.
    """
    if KIND == FLOAT8:
        bits = codes << (24 - 8 * BYTE)
        return ((bits >> 4) & -0x78100000).to(tl.float32, bitcast=True) * scale
    if IS_WIDE:
        bits = with_exponent(codes, BYTE, 1, 0x47000000, NATIVE)
    else:
        bits = with_exponent(codes, BYTE, 2, 0x43000000, NATIVE)
    return tl.fma(bits.to(tl.float32, bitcast=True), scale, -low)


@triton.jit
def looked_up_words(
    words,
    T0: tl.constexpr,
    T1: tl.constexpr,
    T2: tl.constexpr,
    T3: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """The bytes T0 to T3 [16] at the codes of each word: of its first four, and of the others."""
    places = words & 0x77777777
    halves = ((words >> 1) & 0x44444444) | 0x32103210
    none = words & 0
    lower = chosen_bytes(none + T0, none + T1, places, NATIVE)
    upper = chosen_bytes(none + T2, none + T3, places, NATIVE)
    first = chosen_bytes(lower, upper, halves, NATIVE)
    lower = chosen_bytes(none + T0, none + T1, places >> 16, NATIVE)
    upper = chosen_bytes(none + T2, none + T3, places >> 16, NATIVE)
    return first, chosen_bytes(lower, upper, halves >> 16, NATIVE)


@triton.jit
def weights_in_order(
    low,
    high,
    scales,
    extra,
    row,  # int64[BLOCK_N]
    start,  # first unit
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
    IS_EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    DTYPE: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Weights [BLOCK_N, 32 * BLOCK_UNITS] from the unit `start` on, in the order of this file.

    That is: by nibble of a word, then by bit 1 of the word's place, by unit, by bit 0.
    """
    rows = row[:, None, None]
    unit = start + tl.arange(0, BLOCK_UNITS)[None, :, None]
    inside = tl.full([1, 1, 1], 1, tl.int1)
    if not IS_EVEN:
        inside = unit < UNITS
    place = rows * (UNITS * WORDS) + unit * WORDS + tl.arange(0, WORDS)[None, None, :]
    words = tl.load(low + place, mask=inside, other=0)
    is_table: tl.constexpr = KIND != INTEGERS and KIND != FLOAT8
    is_wide: tl.constexpr = HIGH_BITS == 4 or is_table
    if is_table:
        first, second = looked_up_words(words, TABLE_0, TABLE_1, TABLE_2, TABLE_3, NATIVE)
    else:  # the even codes, and the odd ones
        first, second = words & 0x0F0F0F0F, (words >> 4) & 0x0F0F0F0F
        if HIGH_BITS > 0:
            high_words = tl.load(high + place, mask=inside, other=0)
            first = first | high_bytes(high_words, 0, HIGH_BITS)
            second = second | high_bytes(high_words, 1, HIGH_BITS)
    if HALVES == 2:  # as if units had 16 weights
        half = 2 * start + tl.arange(0, 2 * BLOCK_UNITS)[None, :]
        is_half = tl.full([1, 1], 1, tl.int1)
        if not IS_EVEN:
            is_half = half < 2 * UNITS
        scale, subtracted = scales_and_lows(
            scales, extra, row[:, None], half, is_half, 0, 2 * UNITS, 1, 1, SCALING, OFFSET, 16
        )
    else:
        scale, subtracted = scales_and_lows(
            scales, extra, rows, unit, inside, 0, UNITS, UNITS_PER_SCALE, 1, SCALING, OFFSET
        )
    if KIND == FLOAT8:
        scale *= FLOAT8_FACTOR
    else:
        constant: tl.constexpr = 32768.0 if is_wide else 128.0
        subtracted += scale * constant
    other_scale, other_subtracted = scale, subtracted
    if HALVES == 2:
        scale, other_scale = tl.split(tl.reshape(scale, [BLOCK_N, BLOCK_UNITS, 2]))
        subtracted = tl.reshape(subtracted, [BLOCK_N, BLOCK_UNITS, 2])
        subtracted, other_subtracted = tl.split(subtracted)
        scale, other_scale = scale[:, :, None], other_scale[:, :, None]
        subtracted, other_subtracted = subtracted[:, :, None], other_subtracted[:, :, None]
    joined = tl.join(
        joined_codes(
            first,
            first if is_table else second,
            0,
            scale,
            subtracted,
            KIND,
            is_wide,
            is_table,
            DTYPE,
            NATIVE,
        ),
        joined_codes(
            second if is_table else first,
            second,
            4,
            other_scale,
            other_subtracted,
            KIND,
            is_wide,
            is_table,
            DTYPE,
            NATIVE,
        ),
    )
    joined = tl.reshape(joined, [BLOCK_N, BLOCK_UNITS, 2, 2, 2, 2, 2])
    return tl.reshape(tl.permute(joined, [0, 6, 5, 4, 2, 1, 3]), [BLOCK_N, 32 * BLOCK_UNITS])


@triton.jit
def joined_codes(
    even,
    odd,
    FIRST: tl.constexpr,
    scale,
    low,
    KIND: tl.constexpr,
    IS_WIDE: tl.constexpr,
    IS_ORDERED: tl.constexpr,
    DTYPE: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Weights [..., 2, 2] of the four codes from FIRST on: by bit 0 and bit 1 of their number.

    IS_ORDERED: the bytes of `even` and `odd` are these four codes. Otherwise they are all even and
    all odd ones.
    """
    b0: tl.constexpr = 0 if IS_ORDERED else FIRST // 2
    b1: tl.constexpr = 1 if IS_ORDERED else FIRST // 2
    b2: tl.constexpr = 2 if IS_ORDERED else FIRST // 2 + 1
    b3: tl.constexpr = 3 if IS_ORDERED else FIRST // 2 + 1
    w0 = dequantised(even, b0, scale, low, KIND, IS_WIDE, DTYPE, NATIVE).to(DTYPE)
    w1 = dequantised(odd, b1, scale, low, KIND, IS_WIDE, DTYPE, NATIVE).to(DTYPE)
    w2 = dequantised(even, b2, scale, low, KIND, IS_WIDE, DTYPE, NATIVE).to(DTYPE)
    w3 = dequantised(odd, b3, scale, low, KIND, IS_WIDE, DTYPE, NATIVE).to(DTYPE)
    return tl.join(tl.join(w0, w1), tl.join(w2, w3))


@triton.jit(do_not_specialize=["num_rows", "steps"])
def coded_some_rows_kernel(
    x,  # [num_rows, 32 * UNITS]
    low,  # planes of the codes
    high,
    scales,
    extra,
    bias,  # [size]
    output,  # [num_rows, size]
    partial,  # float32[parts, splits, BLOCK_N, ROWS], if IS_SPLIT
    num_done,  # int32[parts], zeros, if IS_SPLIT. They are zeros again at the end.
    num_rows,
    size,  # rows of the weight
    steps,  # of a program: it multiplies 32 * BLOCK_UNITS inputs in each
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
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    IS_EVEN: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    UPCAST: tl.constexpr,
    NATIVE: tl.constexpr,
    LINES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (part, split): BLOCK_N outputs of all rows, from a part of the inputs.

    IS_EVEN: BLOCK_UNITS divides UNITS. LINES: see `some_rows_kernel`. The weights are the left
    operand, so that a few rows of x do not leave half of the tensor cores idle.
    """
    part = tl.program_id(0)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    outputs = part * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(outputs, size - 1).to(tl.int64)
    first = split * steps * BLOCK_UNITS
    last = tl.minimum(first + steps * BLOCK_UNITS, UNITS)
    if EARLY and LINES > 0:
        prefetch_rows(low + row[:, None] * (UNITS * WORDS), first * WORDS, last * WORDS, LINES)
    wait_for_inputs(EARLY)
    rows = tl.arange(0, ROWS)
    x_rows = x + tl.minimum(rows, num_rows - 1)[:, None] * stride_x
    sums = tl.zeros([BLOCK_N, ROWS], tl.float32)
    for start in range(first, last, BLOCK_UNITS):
        weights = weights_in_order(
            low,
            high,
            scales,
            extra,
            row,
            start,
            UNITS,
            UNITS_PER_SCALE,
            HALVES,
            HIGH_BITS,
            SCALING,
            OFFSET,
            KIND,
            TABLE_0,
            TABLE_1,
            TABLE_2,
            TABLE_3,
            IS_EVEN,
            BLOCK_N,
            BLOCK_UNITS,
            x.dtype.element_ty,
            NATIVE,
        )
        columns = start * 32 + tl.arange(0, 32 * BLOCK_UNITS)
        inputs = load_columns(x_rows, columns, UNITS * 32, IS_EVEN)
        inputs = tl.reshape(inputs, [ROWS, BLOCK_UNITS, 8, 2, 2])
        inputs = tl.reshape(tl.permute(inputs, [0, 2, 3, 1, 4]), [ROWS, 32 * BLOCK_UNITS])
        sums += dot(weights, tl.trans(inputs), "ieee", UPCAST)
    is_last = True
    if IS_SPLIT:
        tile_size: tl.constexpr = BLOCK_N * ROWS
        cells = tl.arange(0, BLOCK_N)[:, None] * ROWS + rows[None, :]
        parts = partial + part * num_splits * tile_size + cells
        tl.store(parts + split * tile_size, sums)
        is_last = is_last_part(num_done + part, num_splits)
        if is_last:
            sums = sum_of_parts(parts, num_splits, tile_size, BLOCK_N, ROWS)
    if is_last:
        is_output = outputs < size
        if HAS_BIAS:
            added = tl.load(bias + outputs, mask=is_output, other=0.0).to(tl.float32)
            sums += added[:, None]
        at = output + rows[:, None].to(tl.int64) * stride_output + outputs[None, :]
        inside = (rows < num_rows)[:, None] & is_output[None, :]
        tl.store(at, tl.trans(sums).to(output.dtype.element_ty), mask=inside)
