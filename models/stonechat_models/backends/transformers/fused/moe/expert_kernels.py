"""Triton kernels for the experts of a mixture: pairs of a token and an expert, grouped by expert.

A tile is up to BLOCK_M pairs of one expert. Pair `p` belongs to token `p // top_k`. How many tiles
there are is known on the device only, so the grid has as many as there can be.
"""

import triton
import triton.language as tl

from stonechat_models.backends.transformers.attention.triton_tile import dot, tanh
from stonechat_models.hardware.dependent_launch import wait_for_inputs

NONE, SILU, GELU_TANH, GELU, RELU_SQUARED = (tl.constexpr(i) for i in range(5))
FILL = tl.constexpr(128)
"""Numbers stored at once. The largest BLOCK_M."""


@triton.jit(do_not_specialize=["num_pairs", "num_tiles", "block_m"])
def sort_pairs_kernel(
    expert_ids,  # int[num_pairs]
    tile_experts,  # int32[num_tiles]: the expert of each tile, -1 for tiles without pairs
    tile_pairs,  # int32[num_tiles, block_m]: num_pairs stands for none
    num_pairs,
    num_tiles,
    block_m,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,  # a power of two above NUM_EXPERTS
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (expert): the tiles of its pairs, in their order. One more marks the empty tiles."""
    wait_for_inputs(EARLY)
    expert = tl.program_id(0)
    experts = tl.arange(0, BLOCK_EXPERTS)
    places = tl.arange(0, BLOCK)
    counts = tl.zeros([BLOCK_EXPERTS], dtype=tl.int32)
    for start in range(0, num_pairs, BLOCK):
        pairs = start + places
        ids = tl.load(expert_ids + pairs, mask=pairs < num_pairs, other=NUM_EXPERTS).to(tl.int32)
        counts += tl.histogram(ids, BLOCK_EXPERTS)
    counts = tl.where(experts < NUM_EXPERTS, counts, 0)
    tiles = (counts + block_m - 1) // block_m
    first = tl.sum(tl.where(experts < expert, tiles, 0), 0)
    own = tl.sum(tl.where(experts == expert, tiles, 0), 0)
    count = tl.sum(tl.where(experts == expert, counts, 0), 0)
    is_last = expert == NUM_EXPERTS
    num_marked = tl.where(is_last, num_tiles - first, own)
    fill = tl.arange(0, FILL)
    marks = tl.zeros([FILL], dtype=tl.int32) + tl.where(is_last, -1, expert)
    for start in range(0, num_marked, FILL):
        tl.store(tile_experts + first + start + fill, marks, mask=start + fill < num_marked)
    rows = tile_pairs + first * block_m
    tl.store(rows + count + fill, num_pairs + 0 * fill, mask=count + fill < own * block_m)
    done = 0
    for start in range(0, num_pairs, BLOCK):
        pairs = start + places
        ids = tl.load(expert_ids + pairs, mask=pairs < num_pairs, other=-1).to(tl.int32)
        is_own = ids == expert
        rank = done + tl.cumsum(is_own.to(tl.int32), 0) - 1
        tl.store(rows + rank, pairs, mask=is_own)
        done += tl.sum(is_own.to(tl.int32), 0)


@triton.jit
def activated(gate, alpha, ACTIVATION: tl.constexpr):
    """The activation of float32 numbers. SILU is gate * sigmoid(alpha * gate)."""
    if ACTIVATION == SILU:
        gate = gate / (1.0 + tl.exp(-alpha * gate))
    elif ACTIVATION == GELU_TANH:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        gate = 0.5 * gate * (1.0 + tanh(inner))
    elif ACTIVATION == GELU:
        gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    elif ACTIVATION == RELU_SQUARED:
        gate = tl.maximum(gate, 0.0)
        gate = gate * gate
    return gate


@triton.jit
def pairs_of(tile, tile_pairs, num_pairs, BLOCK_M: tl.constexpr, IS_SORTED: tl.constexpr):
    """int32[BLOCK_M]: the pairs of a tile; num_pairs stands for none.

    IS_SORTED: the tiles are those of `sort_pairs_kernel`. Otherwise tile p is pair p alone.
    """
    rows = tl.arange(0, BLOCK_M)
    pairs = tl.where(rows == 0, tile, num_pairs)
    if IS_SORTED:
        pairs = tl.load(tile_pairs + tile * BLOCK_M + rows)
    return pairs


@triton.jit
def store_activated(
    product,  # float32[BLOCK_M, BLOCK_N]: the columns of part program_id(1)
    output,  # [num_pairs, COLUMNS, or half of it if IS_GATED], contiguous
    pairs,  # int32[BLOCK_M]
    num_pairs,
    alpha,
    limit,  # the gate is at most this, and its counterpart between minus and plus this
    up_offset,  # added to the gate's counterpart
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
):
    """Store what the activation makes of a product, rounded once.

    IS_GATED: columns 2 i and 2 i + 1 are a gate and its counterpart, and make one number.
    """
    if IS_GATED:
        gate, up = tl.split(tl.reshape(product, [BLOCK_M, BLOCK_N // 2, 2]))
        up = tl.minimum(tl.maximum(up, -limit), limit) + up_offset
        result = activated(tl.minimum(gate, limit), alpha, ACTIVATION) * up
        places = tl.program_id(1) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    else:
        result = activated(product, alpha, ACTIVATION)
        places = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    width: tl.constexpr = COLUMNS // 2 if IS_GATED else COLUMNS
    tl.store(
        output + pairs.to(tl.int64)[:, None] * width + places[None, :],
        result.to(output.dtype.element_ty),
        mask=(pairs < num_pairs)[:, None] & (places < width)[None, :],
    )


@triton.jit(do_not_specialize=["num_pairs", "top_k"])
def expert_product_kernel(
    x,  # [rows, SIZE], contiguous: pair p reads row p // top_k
    weight,  # [experts, COLUMNS, SIZE], with any strides
    bias,  # [experts, COLUMNS], contiguous
    tile_experts,  # int[tiles]
    tile_pairs,  # int32[tiles, BLOCK_M]
    output,  # as in `store_activated`, and so are the last numbers
    num_pairs,
    top_k,
    stride_expert,  # elements from one expert to the next
    stride_column,
    stride_inner,
    alpha,
    limit,
    up_offset,
    COLUMNS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_SORTED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (tile, part): BLOCK_N columns of the product of a tile's rows and its expert.

    IS_GATED: columns are pairs of a gate and its counterpart, neighbours if IS_INTERLEAVED,
    otherwise one in each half.
    """
    wait_for_inputs(EARLY)
    tile = tl.program_id(0)
    expert = tl.load(tile_experts + tile).to(tl.int64)
    if expert < 0:
        return
    pairs = pairs_of(tile, tile_pairs, num_pairs, BLOCK_M, IS_SORTED)
    is_pair = pairs < num_pairs
    places = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = places < COLUMNS
    columns = places
    if IS_GATED and not IS_INTERLEAVED:
        columns = places % 2 * (COLUMNS // 2) + places // 2
    inner = tl.arange(0, BLOCK_K)
    x += (pairs // top_k).to(tl.int64)[:, None] * SIZE
    weight += expert * stride_expert + columns[None, :] * stride_column
    product = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, SIZE, BLOCK_K):
        k = start + inner
        is_inner = k < SIZE
        a = tl.load(x + k[None, :], mask=is_pair[:, None] & is_inner[None, :], other=0.0)
        b = tl.load(
            weight + k[:, None] * stride_inner,
            mask=is_inner[:, None] & is_column[None, :],
            other=0.0,
        )
        product += dot(a, b, PRECISION, UPCAST)
    if HAS_BIAS:
        added = tl.load(bias + expert * COLUMNS + columns, mask=is_column, other=0.0)
        product += added.to(tl.float32)[None, :]
    store_activated(
        product,
        output,
        pairs,
        num_pairs,
        alpha,
        limit,
        up_offset,
        COLUMNS,
        BLOCK_M,
        BLOCK_N,
        ACTIVATION,
        IS_GATED,
    )


@triton.jit(do_not_specialize=["top_k"])
def weighted_sum_kernel(
    products,  # [tokens, top_k, SIZE], contiguous
    routing,  # [tokens, top_k], contiguous
    output,  # [tokens, SIZE], contiguous
    top_k,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (token, part): the weighted sum of a token's experts, in their order and float32.

    ADDS: what the output has is added to the rounded sum.
    """
    wait_for_inputs(EARLY)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for i in range(top_k):
        pair = token * top_k + i
        product = tl.load(products + pair * SIZE + columns, mask=inside, other=0.0)
        total += product.to(tl.float32) * tl.load(routing + pair).to(tl.float32)
    if ADDS:
        total = total.to(output.dtype.element_ty).to(tl.float32)
        total += tl.load(output + token * SIZE + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + token * SIZE + columns, total.to(output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["top_k"])
def router_kernel(
    logits,  # [tokens, NUM_EXPERTS], contiguous
    correction,  # [NUM_EXPERTS]: added to the scores for the choice only
    routing,  # [tokens, top_k], contiguous
    ids,  # int64[tokens, top_k], contiguous
    top_k,
    scale,  # of the weights
    NUM_EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
    USES_SIGMOID: tl.constexpr,
    HAS_CORRECTION: tl.constexpr,
    NORMALISES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (token): its top_k experts, best first, and their weights. Of ties, the lowest.

    NORMALISES: the weights add up to `scale`. The experts of a token of NaN are valid too.
    """
    wait_for_inputs(EARLY)
    token = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, BLOCK)
    inside = experts < NUM_EXPERTS
    x = tl.load(logits + token * NUM_EXPERTS + experts, mask=inside, other=float("-inf"))
    x = x.to(tl.float32)
    x = tl.where(x == x, x, float("-inf"))
    if USES_SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-x))
    else:
        scores = tl.exp(x - tl.max(x, 0))
        scores = scores / tl.sum(scores, 0)
    choice = scores
    if HAS_CORRECTION:
        choice += tl.load(correction + experts, mask=inside, other=0.0).to(tl.float32)
    choice = tl.where(inside & (choice == choice), choice, float("-inf"))
    places = tl.full([BLOCK], -1, dtype=tl.int32)
    total = 0.0
    for i in range(top_k):
        best = tl.argmax(choice, 0)
        is_best = experts == best
        tl.store(ids + token * top_k + i, best.to(tl.int64))
        total += tl.sum(tl.where(is_best, scores, 0.0), 0)
        places = tl.where(is_best, i, places)
        choice = tl.where(is_best, float("-inf"), choice)
    if NORMALISES:
        scores = scores / (total + 1e-20)
    tl.store(
        routing + token * top_k + places,
        (scores * scale).to(routing.dtype.element_ty),
        mask=places >= 0,
    )
