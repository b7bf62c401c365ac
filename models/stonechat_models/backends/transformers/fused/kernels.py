"""Triton kernels for the operations between a model's matrix products."""

import triton
import triton.language as tl

from stonechat_models.backends.transformers.attention.triton_tile import tanh
from stonechat_models.hardware.dependent_launch import wait_for_inputs


@triton.jit
def scaled_row(values, mean_square, weight, epsilon, offset, NORM_DTYPE: tl.constexpr):
    """RMS norm of float32 values. NORM_DTYPE: the dtype of the normalised row before scaling."""
    normalised = values * (1.0 / tl.sqrt(mean_square + epsilon))
    return normalised.to(NORM_DTYPE).to(tl.float32) * (weight.to(tl.float32) + offset)


@triton.jit
def rms_norm_kernel(
    x,  # [rows, SIZE]
    added,  # [rows, SIZE], contiguous
    weight,  # [SIZE]
    summed,  # [rows, SIZE], contiguous
    output,  # [rows, SIZE], contiguous
    stride_x,  # elements from one row to the next
    epsilon,
    offset,  # added to the weight
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    ADDS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (row), in float32. ROUNDS_FIRST: the normalised row is rounded before scaling.

    ADDS: the input is the row of `x` plus that of `added`, rounded. It is also stored in `summed`.
    """
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    loaded = tl.load(x + row * stride_x + columns, mask=inside, other=0.0)
    if ADDS:
        addend = tl.load(added + row * SIZE + columns, mask=inside, other=0.0)
        loaded = (loaded.to(tl.float32) + addend.to(tl.float32)).to(loaded.dtype)
        tl.store(summed + row * SIZE + columns, loaded, mask=inside)
    values = loaded.to(tl.float32)
    scale = tl.load(weight + columns, mask=inside, other=0.0)
    mean_square = tl.sum(values * values, 0) / SIZE
    norm_dtype: tl.constexpr = loaded.dtype if ROUNDS_FIRST else tl.float32
    result = scaled_row(values, mean_square, scale, epsilon, offset, norm_dtype)
    tl.store(output + row * SIZE + columns, result.to(output.dtype.element_ty), mask=inside)


@triton.jit
def activated(gate, GELU: tl.constexpr):
    """GELU (its tanh approximation) or SiLU of float32 numbers."""
    if GELU:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        return 0.5 * gate * (1.0 + tanh(inner))
    return gate / (1.0 + tl.exp(-gate))


@triton.jit
def gated_kernel(
    gate_up,  # [rows, 2 * SIZE], contiguous
    output,  # [rows, SIZE], contiguous
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    GELU: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (row, part): act(first half) times second half. The activation is rounded too."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    loaded = tl.load(gate_up + row * 2 * SIZE + columns, mask=inside, other=0.0)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + columns, mask=inside, other=0.0)
    gate = loaded.to(tl.float32)
    result = activated(gate, GELU).to(loaded.dtype).to(tl.float32) * up.to(tl.float32)
    tl.store(output + row * SIZE + columns, result.to(output.dtype.element_ty), mask=inside)


@triton.jit
def rotated_heads(
    row,  # a token's heads of one kind, [heads, STRIDE], of which the first SIZE numbers count
    heads,  # int32[BLOCK_HEADS]
    is_head,  # bool[BLOCK_HEADS]
    weight,  # [SIZE]
    cosines,  # the token's, [ANGLES]
    sines,
    epsilon,
    offset,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    ROTARY: tl.constexpr,
    ANGLES: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
):
    """Heads [BLOCK_HEADS, BLOCK], normalised and rotated, in their own dtype.

    RoPE rotates pairs of elements: one in the first half of a head's first ROTARY elements, and its
    counterpart in the second half. Every product is rounded, as in separate operators.
    """
    columns = tl.arange(0, BLOCK)
    inside = is_head[:, None] & (columns < SIZE)[None, :]
    row += heads[:, None] * STRIDE
    loaded = tl.load(row + columns[None, :], mask=inside, other=0.0)
    dtype: tl.constexpr = loaded.dtype
    values = loaded.to(tl.float32)
    if HAS_NORM:
        mean_square = (tl.sum(values * values, 1) / SIZE)[:, None]
        norm_dtype: tl.constexpr = dtype if ROUNDS_FIRST else tl.float32
        scale = tl.load(weight + columns, mask=columns < SIZE, other=0.0)[None, :]
        values = scaled_row(values, mean_square, scale, epsilon, offset, norm_dtype).to(dtype)
        values = values.to(tl.float32)
    if ROTARY > 0:
        half: tl.constexpr = ROTARY // 2
        is_rotary = columns < ROTARY
        pair_columns = tl.where(columns < half, columns + half, columns - half)
        has_pair = is_head[:, None] & is_rotary[None, :]
        pair = tl.load(row + pair_columns[None, :], mask=has_pair, other=0.0)
        pair = pair.to(tl.float32)
        if HAS_NORM:
            scale = tl.load(weight + pair_columns, mask=is_rotary, other=0.0)[None, :]
            pair = scaled_row(pair, mean_square, scale, epsilon, offset, norm_dtype).to(dtype)
            pair = pair.to(tl.float32)
        pair = tl.where((columns < half)[None, :], -pair, pair)
        angles = columns % ANGLES
        cosine = tl.load(cosines + angles, mask=is_rotary, other=1.0).to(tl.float32)[None, :]
        sine = tl.load(sines + angles, mask=is_rotary, other=0.0).to(tl.float32)[None, :]
        values = (values * cosine).to(dtype).to(tl.float32) + (pair * sine).to(dtype).to(tl.float32)
    return values.to(dtype)


@triton.jit
def store_cached(pointers, heads, inside, limit, CLAMPS: tl.constexpr):
    """Store in the cache's dtype. CLAMPS: clamp to its range, since casts beyond it differ."""
    if CLAMPS:
        heads = tl.minimum(tl.maximum(heads.to(tl.float32), -limit), limit)
    tl.store(pointers, heads.to(pointers.dtype.element_ty), mask=inside)


@triton.jit
def rope_and_store_kernel(
    qkv,  # [T, HEADS * QUERY_SIZE + 2 * KV_HEADS * SIZE], contiguous
    cosines,  # [T, ANGLES]
    sines,  # [T, ANGLES]
    query_weight,  # [SIZE]
    key_weight,  # [SIZE]
    slots,  # int64[T]
    query,  # [T, HEADS, SIZE], contiguous
    keys,  # [slots, KV_HEADS, SIZE], contiguous
    values,  # [slots, KV_HEADS, SIZE], contiguous
    stride_cosines,  # elements from one token to the next
    stride_sines,
    query_epsilon,
    key_epsilon,
    offset,  # added to the weights
    limit,  # largest number that the cache holds
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    QUERY_SIZE: tl.constexpr,
    ROTARY: tl.constexpr,
    ANGLES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    CLAMPS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (token, part): BLOCK_HEADS query heads, or BLOCK_HEADS key heads and their values."""
    wait_for_inputs(EARLY)
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    query_parts: tl.constexpr = (HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    columns = tl.arange(0, BLOCK)
    row = qkv + token * (HEADS * QUERY_SIZE + 2 * KV_HEADS * SIZE)
    cosines += token * stride_cosines
    sines += token * stride_sines
    if part < query_parts:
        heads = part * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        is_head = heads < HEADS
        rotated = rotated_heads(
            row,
            heads,
            is_head,
            query_weight,
            cosines,
            sines,
            query_epsilon,
            offset,
            SIZE,
            QUERY_SIZE,
            ROTARY,
            ANGLES,
            BLOCK,
            HAS_NORM,
            ROUNDS_FIRST,
        )
        tl.store(
            query + (token * HEADS + heads)[:, None] * SIZE + columns[None, :],
            rotated,
            mask=is_head[:, None] & (columns < SIZE)[None, :],
        )
    else:
        heads = (part - query_parts) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        is_head = heads < KV_HEADS
        inside = is_head[:, None] & (columns < SIZE)[None, :]
        rotated = rotated_heads(
            row + HEADS * QUERY_SIZE,
            heads,
            is_head,
            key_weight,
            cosines,
            sines,
            key_epsilon,
            offset,
            SIZE,
            SIZE,
            ROTARY,
            ANGLES,
            BLOCK,
            HAS_NORM,
            ROUNDS_FIRST,
        )
        offsets = heads[:, None] * SIZE + columns[None, :]
        row += HEADS * QUERY_SIZE + KV_HEADS * SIZE
        value = tl.load(row + offsets, mask=inside, other=0.0)
        cache_offsets = tl.load(slots + token) * KV_HEADS * SIZE + offsets
        store_cached(keys + cache_offsets, rotated, inside, limit, CLAMPS)
        store_cached(values + cache_offsets, value, inside, limit, CLAMPS)
