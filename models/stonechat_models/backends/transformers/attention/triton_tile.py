"""The inner loop of the Triton kernels: one tile of query rows over a range of cached keys.

Softmax is computed online (arXiv 2205.14135), in base 2 and float32. A tile's row is a pair of a
query token and a head of one KV head's group, so that a key is read once for the whole group.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def tanh(x):
    """Uses an exponential that cannot overflow."""
    decay = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    magnitude = (1.0 - decay) / (1.0 + decay)
    return tl.where(x < 0.0, -magnitude, magnitude)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """The product in float32. UPCAST: for the interpreter, which cannot multiply bfloat16."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def first_key(position, window, chunk, HAS_WINDOW: tl.constexpr, HAS_CHUNKS: tl.constexpr):
    """The position of the first key that a query sees, as `AttentionSpec.first_key`."""
    first = position * 0
    if HAS_WINDOW:
        first = tl.maximum(first, position - window + 1)
    if HAS_CHUNKS:
        first = tl.maximum(first, position // chunk * chunk)
    return first


@triton.jit
def finished(
    output,  # float32[BLOCK_M, BLOCK_DV], as `attend_tile` returns it
    peak,
    total,
    sinks,  # [H]
    heads,  # int32[BLOCK_M]: the query head of each row
    is_row,  # whether a row is one
    HAS_SINKS: tl.constexpr,
):
    """The output divided by the sum of its weights, the sink's among them. 0 without any key."""
    if HAS_SINKS:
        sink = tl.load(sinks + heads, mask=is_row, other=0.0).to(tl.float32) * LOG2E
        new_peak = tl.maximum(peak, sink)
        rescale = tl.exp2(peak - new_peak)
        total = total * rescale + tl.exp2(sink - new_peak)
        output = output * rescale[:, None]
    return output / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def first_blocks(block_table, first, last, BLOCK_SIZE: tl.constexpr, BLOCK_K: tl.constexpr):
    """int32[BLOCK_K]: the blocks of the keys from `first` on. Keys from `last` on have block 0."""
    positions = first + tl.arange(0, BLOCK_K)
    return tl.load(block_table + positions // BLOCK_SIZE, mask=positions < last, other=0)


@triton.jit
def attend_tile(
    query,  # [BLOCK_M, BLOCK_DK]
    row_lasts,  # int32[BLOCK_M]: position of the last key that each row sees
    row_firsts,  # int32[BLOCK_M]: position of the first key that each row sees
    first,  # the first key, a multiple of BLOCK_K
    last,  # the end of the keys, exclusive
    blocks,  # as `first_blocks` returns them
    keys,  # the layer's keys, from the KV head on
    values,
    block_table,  # the sequence's row
    stride_key,  # elements from one slot to the next
    stride_value,
    scaling,
    softcap,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_FIRSTS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Returns float32 output[BLOCK_M, BLOCK_DV], largest score and sum of weights [BLOCK_M].

    The output is not normalised. Scores are in base 2. For a row that sees no key, the largest
    score is -inf and the sum is 0.
    """
    if keys.dtype.element_ty.primitive_bitwidth == 8 and query.dtype == tl.bfloat16:
        # Two float8 numbers become float16 in one instruction, and bfloat16 in four.
        query = tl.clamp(query.to(tl.float32), -65504.0, 65504.0).to(tl.float16)
    peak = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    output = tl.zeros([BLOCK_M, BLOCK_DV], dtype=tl.float32)
    masked = first
    if BLOCK_M >= 64 and not HAS_FIRSTS and query.dtype != tl.float32:
        # All rows see all keys of the first tiles, so that no score needs to be masked. With few
        # rows the masks cost nothing, since such a tile waits for memory. Twice the code takes
        # twice the time to compile, which is long enough for float32.
        masked = tl.minimum(tl.min(row_lasts, 0) + 1, last) // BLOCK_K * BLOCK_K
        masked = tl.maximum(masked, first)
        for start in range(first, masked, BLOCK_K):
            output, peak, total, blocks = attend_keys(
                query,
                row_lasts,
                row_firsts,
                start,
                last,
                output,
                peak,
                total,
                blocks,
                keys,
                values,
                block_table,
                stride_key,
                stride_value,
                scaling,
                softcap,
                BLOCK_SIZE,
                BLOCK_K,
                DK,
                DV,
                BLOCK_DK,
                BLOCK_DV,
                HAS_SOFTCAP,
                HAS_FIRSTS,
                False,
                PRECISION,
                UPCAST,
            )
    for start in range(masked, last, BLOCK_K):
        output, peak, total, blocks = attend_keys(
            query,
            row_lasts,
            row_firsts,
            start,
            last,
            output,
            peak,
            total,
            blocks,
            keys,
            values,
            block_table,
            stride_key,
            stride_value,
            scaling,
            softcap,
            BLOCK_SIZE,
            BLOCK_K,
            DK,
            DV,
            BLOCK_DK,
            BLOCK_DV,
            HAS_SOFTCAP,
            HAS_FIRSTS,
            True,
            PRECISION,
            UPCAST,
        )
    return output, peak, total


@triton.jit
def attend_keys(
    query,
    row_lasts,
    row_firsts,
    start,  # the tile's first key
    last,
    output,  # so far, as `attend_tile` returns it
    peak,
    total,
    blocks,  # int32[BLOCK_K]: the block of each key
    keys,
    values,
    block_table,
    stride_key,
    stride_value,
    scaling,
    softcap,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_FIRSTS: tl.constexpr,
    IS_MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Adds a tile of keys. Returns output, peak, total, and the blocks of the next tile.

    Blocks are loaded one tile ahead: Triton gives keys and values more than one buffer only if
    their addresses do not wait for another load.
    """
    offsets_dk = tl.arange(0, BLOCK_DK)
    offsets_dv = tl.arange(0, BLOCK_DV)
    positions = start + tl.arange(0, BLOCK_K)
    ahead = positions + BLOCK_K
    next_blocks = tl.load(block_table + ahead // BLOCK_SIZE, mask=ahead < last, other=0)
    slots = blocks.to(tl.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
    is_key = (offsets_dk < DK)[None, :]
    is_value = (offsets_dv < DV)[None, :]
    if IS_MASKED:
        in_range = positions < last
        is_key = is_key & in_range[:, None]
        is_value = is_value & in_range[:, None]
    key_at = keys + slots[:, None] * stride_key + offsets_dk[None, :]
    key = tl.load(key_at, mask=is_key, other=0.0).to(query.dtype)
    scores = dot(query, tl.trans(key), PRECISION, UPCAST)
    if HAS_SOFTCAP:
        scores = softcap * tanh(scores * (scaling / softcap))
        to_base_2 = LOG2E
    else:
        to_base_2 = scaling * LOG2E
    if IS_MASKED:
        is_visible = in_range[None, :] & (positions[None, :] <= row_lasts[:, None])
        if HAS_FIRSTS:
            is_visible = is_visible & (positions[None, :] >= row_firsts[:, None])
        scores = tl.where(is_visible, scores, float("-inf"))

    new_peak = tl.maximum(peak, tl.max(scores, 1) * to_base_2)
    # For a row without visible keys so far, -inf minus -inf must not be computed.
    shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores * to_base_2 - shift[:, None])
    rescale = tl.exp2(peak - shift)
    total = total * rescale + tl.sum(weights, 1)
    value_at = values + slots[:, None] * stride_value + offsets_dv[None, :]
    value = tl.load(value_at, mask=is_value, other=0.0).to(query.dtype)
    output = output * rescale[:, None]
    output += dot(weights.to(query.dtype), value, PRECISION, UPCAST)
    return output, new_peak, total, next_blocks
