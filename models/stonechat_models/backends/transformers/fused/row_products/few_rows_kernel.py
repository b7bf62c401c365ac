"""A matrix product for a few rows of activations: it reads each weight once, without tensor cores.

The time of such a product is that of reading its weights. What comes before it (the RMS norm of its
input) and after it (bias, gated activation, residual) costs no kernel of its own here.
"""

import triton
import triton.language as tl

from stonechat_models.backends.transformers.fused.kernels import activated
from stonechat_models.hardware.dependent_launch import prefetch_rows, wait_for_inputs

LANE = tl.constexpr(8)
"""Neighbouring columns that one thread multiplies and adds up."""


@triton.jit
def weight_tile(tile, is_output, columns, size):
    """Weights [BLOCK_N, BLOCK_K] at these columns, zeros beyond the matrix."""
    inside = is_output[:, None] & (columns < size)[None, :]
    return tl.load(tile + columns[None, :], mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def lane_sums(weights, row, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """The products of [BLOCK_N, BLOCK_K] and [BLOCK_K], summed over each lane of columns."""
    products = weights * row[None, :]
    return tl.sum(tl.reshape(products, [BLOCK_N, BLOCK_K // LANE, LANE]), 2)


@triton.jit
def input_rows(x, columns, size, stride_x, ROWS: tl.constexpr):
    """A tuple of the rows' numbers at these columns, in their dtype."""
    rows = ()
    for i in tl.static_range(ROWS):
        rows += (tl.load(x + i * stride_x + columns, mask=columns < size, other=0.0),)  # type: ignore[assignment]
    return rows


@triton.jit
def row_products(
    x,  # [ROWS, size]
    weight,  # [..., size], contiguous
    bias,  # as many as weight has rows
    norm_weight,  # [size]
    first,  # int64[BLOCK_N]: rows of the weight
    second,  # int64[BLOCK_N]: more rows, if PAIRED
    is_output,  # bool[BLOCK_N]
    size,
    stride_x,
    epsilon,
    offset,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LINES: tl.constexpr,
    PAIRED: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Products of each row of `x`, or its norm, with rows of the weight: two tuples of [BLOCK_N].

    The sums and the norm are float32 and not rounded. The next tile of weights is loaded before the
    present one is used, and the first one before the input is there. LINES: how many lines of each
    row of the weight are fetched before that.
    """
    if EARLY and LINES > 0:
        prefetch_rows(weight + tl.where(is_output, first, 0)[:, None] * size, 0, size, LINES)
        if PAIRED:
            prefetch_rows(weight + tl.where(is_output, second, 0)[:, None] * size, 0, size, LINES)
    columns = tl.arange(0, BLOCK_K)
    first_tile = weight + first[:, None] * size
    second_tile = weight + second[:, None] * size
    first_weights = weight_tile(first_tile, is_output, columns, size)
    if PAIRED:
        second_weights = weight_tile(second_tile, is_output, columns, size)
    scale = columns
    if HAS_NORM:
        scale = tl.load(norm_weight + columns, mask=columns < size, other=0.0)
    wait_for_inputs(EARLY)
    rows = input_rows(x, columns, size, stride_x, ROWS)
    first_sums = (tl.zeros([BLOCK_N, BLOCK_K // LANE], tl.float32),) * ROWS
    second_sums = first_sums
    squares = (tl.zeros([BLOCK_K // LANE], tl.float32),) * ROWS
    for start in range(0, size, BLOCK_K):
        next_columns = start + BLOCK_K + columns
        first_present = first_weights.to(tl.float32)
        first_weights = weight_tile(first_tile, is_output, next_columns, size)
        if PAIRED:
            second_present = second_weights.to(tl.float32)
            second_weights = weight_tile(second_tile, is_output, next_columns, size)
        present_rows = rows
        present_scale = scale
        rows = input_rows(x, next_columns, size, stride_x, ROWS)
        if HAS_NORM:
            scale = tl.load(norm_weight + next_columns, mask=next_columns < size, other=0.0)
        next_first_sums = ()
        next_second_sums = ()
        next_squares = ()
        for i in tl.static_range(ROWS):
            row = present_rows[i].to(tl.float32)
            if HAS_NORM:
                square = tl.sum(tl.reshape(row * row, [BLOCK_K // LANE, LANE]), 1)
                next_squares += (squares[i] + square,)  # type: ignore[assignment]
                row = row * (present_scale.to(tl.float32) + offset)
            total = first_sums[i] + lane_sums(first_present, row, BLOCK_N, BLOCK_K)
            next_first_sums += (total,)  # type: ignore[assignment]
            if PAIRED:
                total = second_sums[i] + lane_sums(second_present, row, BLOCK_N, BLOCK_K)
                next_second_sums += (total,)  # type: ignore[assignment]
        first_sums = next_first_sums
        if PAIRED:
            second_sums = next_second_sums
        if HAS_NORM:
            squares = next_squares

    firsts = ()
    seconds = ()
    for i in tl.static_range(ROWS):
        norm = 1.0
        if HAS_NORM:
            norm = 1.0 / tl.sqrt(tl.sum(squares[i], 0) / size + epsilon)
        value = tl.sum(first_sums[i], 1) * norm
        if HAS_BIAS:
            value += tl.load(bias + first, mask=is_output, other=0.0).to(tl.float32)
        firsts += (value,)  # type: ignore[assignment]
        if PAIRED:
            value = tl.sum(second_sums[i], 1) * norm
            if HAS_BIAS:
                value += tl.load(bias + second, mask=is_output, other=0.0).to(tl.float32)
        seconds += (value,)  # type: ignore[assignment]
    return firsts, seconds


@triton.jit(do_not_specialize=["num_outputs"])
def few_rows_kernel(
    x,  # [ROWS, size]
    weight,  # [num_outputs, size], contiguous; if GATED [2 * num_outputs, size]
    bias,  # as many as weight has rows
    norm_weight,  # [size]
    residual,  # [ROWS, num_outputs], contiguous; may be the output
    output,  # [ROWS, num_outputs], contiguous
    size,
    num_outputs,
    stride_x,  # elements from one row to the next
    epsilon,
    offset,  # added to the norm's weight
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LINES: tl.constexpr,
    ADDS: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (part): BLOCK_N outputs of all rows.

    HAS_NORM: of the rows' RMS norm. GATED: of act(first half) times second half. ADDS: plus
    `residual`.
    """
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_output = outputs < num_outputs
    firsts, seconds = row_products(
        x,
        weight,
        bias,
        norm_weight,
        outputs.to(tl.int64),
        outputs.to(tl.int64) + num_outputs,
        is_output,
        size,
        stride_x,
        epsilon,
        offset,
        ROWS,
        BLOCK_N,
        BLOCK_K,
        HAS_NORM,
        HAS_BIAS,
        LINES,
        GATED,
        EARLY,
    )
    dtype: tl.constexpr = output.dtype.element_ty
    for i in tl.static_range(ROWS):
        value = firsts[i]
        if GATED:
            gate = activated(value.to(dtype).to(tl.float32), GELU)
            value = gate.to(dtype).to(tl.float32) * seconds[i].to(dtype).to(tl.float32)
        at = i * num_outputs + outputs
        if ADDS:
            value += tl.load(residual + at, mask=is_output, other=0.0).to(tl.float32)
        tl.store(output + at, value.to(dtype), mask=is_output)


@triton.jit
def few_rows_qkv_kernel(
    x,  # [ROWS, size]
    weight,  # [(HEADS + 2 * KV_HEADS) * SIZE, size], contiguous
    bias,  # as many as weight has rows
    norm_weight,  # [size]
    cosines,  # [ROWS, ANGLES]
    sines,  # [ROWS, ANGLES]
    slots,  # int64[ROWS]
    query,  # [ROWS, HEADS, SIZE], contiguous
    keys,  # [slots, KV_HEADS, SIZE], contiguous
    values,  # [slots, KV_HEADS, SIZE], contiguous
    size,
    stride_x,  # elements from one row to the next
    stride_cosines,
    stride_sines,
    epsilon,
    offset,  # added to the norm's weight
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    ANGLES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LINES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (part): BLOCK_N pairs of elements that RoPE rotates together, of all rows.

    The pairs of queries are rotated, those of keys rotated and stored in the cache, those of
    values stored. Numbers are rounded as in separate operators.
    """
    half: tl.constexpr = SIZE // 2
    pairs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_pair = pairs < (HEADS + 2 * KV_HEADS) * half
    heads = pairs // half
    columns = pairs % half
    first_row = (heads * SIZE + columns).to(tl.int64)
    firsts, seconds = row_products(
        x,
        weight,
        bias,
        norm_weight,
        first_row,
        first_row + half,
        is_pair,
        size,
        stride_x,
        epsilon,
        offset,
        ROWS,
        BLOCK_N,
        BLOCK_K,
        HAS_NORM,
        HAS_BIAS,
        LINES,
        True,
        EARLY,
    )
    dtype: tl.constexpr = query.dtype.element_ty
    is_turned = is_pair & (heads < HEADS + KV_HEADS)
    is_query = is_pair & (heads < HEADS)
    is_key = is_turned & (heads >= HEADS)
    is_value = is_pair & (heads >= HEADS + KV_HEADS)
    key_columns = (heads - HEADS) * SIZE + columns
    value_columns = key_columns - KV_HEADS * SIZE
    for i in tl.static_range(ROWS):
        first = firsts[i].to(dtype)
        second = seconds[i].to(dtype)
        row_cosines = cosines + i * stride_cosines
        row_sines = sines + i * stride_sines
        opposite = (-seconds[i]).to(dtype)
        turned_first = turned(first, opposite, row_cosines, row_sines, columns, is_turned, ANGLES)
        turned_second = turned(
            second, first, row_cosines, row_sines, columns + half, is_turned, ANGLES
        )
        at = query + i * HEADS * SIZE + heads * SIZE + columns
        tl.store(at, turned_first, mask=is_query)
        tl.store(at + half, turned_second, mask=is_query)
        slot = tl.load(slots + i) * KV_HEADS * SIZE
        at = keys + slot + key_columns
        tl.store(at, turned_first, mask=is_key)
        tl.store(at + half, turned_second, mask=is_key)
        at = values + slot + value_columns
        tl.store(at, first, mask=is_value)
        tl.store(at + half, second, mask=is_value)


@triton.jit
def turned(value, pair, cosines, sines, columns, is_turned, ANGLES: tl.constexpr):
    """RoPE of `value`, whose counterpart is `pair`, both [BLOCK_N]. Every product is rounded."""
    angles = columns % ANGLES
    cosine = tl.load(cosines + angles, mask=is_turned, other=1.0).to(tl.float32)
    sine = tl.load(sines + angles, mask=is_turned, other=0.0).to(tl.float32)
    dtype: tl.constexpr = value.dtype
    by_cosine = (value.to(tl.float32) * cosine).to(dtype).to(tl.float32)
    by_sine = (pair.to(tl.float32) * sine).to(dtype).to(tl.float32)
    return (by_cosine + by_sine).to(dtype)
