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
def attend_tile(
    query,  # [BLOCK_M, BLOCK_DK]
    row_positions,  # int32[BLOCK_M]: position of each row's token
    row_firsts,  # int32[BLOCK_M]: position of the first key that each row sees
    first,  # the first key, a multiple of BLOCK_K
    last,  # the end of the keys, exclusive
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
    offsets_k = tl.arange(0, BLOCK_K)
    offsets_dk = tl.arange(0, BLOCK_DK)
    offsets_dv = tl.arange(0, BLOCK_DV)
    peak = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    output = tl.zeros([BLOCK_M, BLOCK_DV], dtype=tl.float32)
    for start in range(first, last, BLOCK_K):
        positions = start + offsets_k
        in_range = positions < last
        blocks = tl.load(block_table + positions // BLOCK_SIZE, mask=in_range, other=0)
        slots = blocks.to(tl.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
        key = tl.load(
            keys + slots[:, None] * stride_key + offsets_dk[None, :],
            mask=in_range[:, None] & (offsets_dk < DK)[None, :],
            other=0.0,
        ).to(query.dtype)
        scores = dot(query, tl.trans(key), PRECISION, UPCAST) * scaling
        if HAS_SOFTCAP:
            scores = softcap * tanh(scores / softcap)
        is_visible = in_range[None, :] & (positions[None, :] <= row_positions[:, None])
        if HAS_FIRSTS:
            is_visible = is_visible & (positions[None, :] >= row_firsts[:, None])
        scores = tl.where(is_visible, scores * LOG2E, float("-inf"))

        new_peak = tl.maximum(peak, tl.max(scores, 1))
        # For a row without visible keys so far, -inf minus -inf must not be computed.
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - shift[:, None])
        rescale = tl.exp2(peak - shift)
        total = total * rescale + tl.sum(weights, 1)
        value = tl.load(
            values + slots[:, None] * stride_value + offsets_dv[None, :],
            mask=in_range[:, None] & (offsets_dv < DV)[None, :],
            other=0.0,
        ).to(query.dtype)
        output = output * rescale[:, None]
        output += dot(weights.to(query.dtype), value, PRECISION, UPCAST)
        peak = new_peak
    return output, peak, total
