"""A Triton kernel that multiplies by quantised experts as they are stored; see `codes.py`."""

import triton
import triton.language as tl

from stonechat_models.backends.quantization.codes.code_kernels import dequantised_tile
from stonechat_models.backends.transformers.fused.moe.expert_kernels import (
    pairs_of,
    store_activated,
)
from stonechat_models.hardware.dependent_launch import wait_for_inputs


@triton.jit(do_not_specialize=["num_pairs", "top_k"])
def coded_product_kernel(
    x,  # [rows, 32 * UNITS], contiguous: pair p reads row p // top_k
    low,  # planes of the codes
    high,
    scales,
    extra,
    table,
    bias,  # [experts, COLUMNS], contiguous
    tile_experts,  # int[tiles]
    tile_pairs,  # int32[tiles, BLOCK_M]
    output,  # as in `store_activated`, and so are the last numbers
    num_pairs,
    top_k,
    stride_expert,  # rows of codes from one expert to the next
    stride_half,  # from a gate to its counterpart, if IS_GATED
    stride_row,  # from one column to the next, or from one gate to the next
    alpha,
    limit,
    up_offset,
    COLUMNS: tl.constexpr,
    UNITS: tl.constexpr,
    UNITS_PER_SCALE: tl.constexpr,
    HALVES: tl.constexpr,
    HIGH_BITS: tl.constexpr,
    SCALING: tl.constexpr,
    OFFSET: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    IS_SORTED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (tile, part): as `expert_product_kernel`. The weights are the left operand."""
    wait_for_inputs(EARLY)
    tile = tl.program_id(0)
    expert = tl.load(tile_experts + tile).to(tl.int64)
    if expert < 0:
        return
    pairs = pairs_of(tile, tile_pairs, num_pairs, BLOCK_M, IS_SORTED)
    places = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = places < COLUMNS
    columns = places
    if IS_GATED:
        row = expert * stride_expert + places % 2 * stride_half + places // 2 * stride_row
        if not IS_INTERLEAVED:
            columns = places % 2 * (COLUMNS // 2) + places // 2
    else:
        row = expert * stride_expert + places * stride_row
    k = tl.arange(0, 32 * BLOCK_UNITS)
    x += (pairs // top_k).to(tl.int64)[None, :] * (32 * UNITS)
    is_pair = pairs < num_pairs
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, UNITS, BLOCK_UNITS):
        weights = dequantised_tile(
            low,
            high,
            scales,
            extra,
            table,
            row,
            is_column,
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
            x.dtype.element_ty,
        )
        place = start * 32 + k
        inside = is_pair[None, :] & (place < UNITS * 32)[:, None]
        part = tl.load(x + place[:, None], mask=inside, other=0.0)
        if UPCAST:
            weights, part = weights.to(tl.float32), part.to(tl.float32)
        total = tl.dot(weights, part, total, input_precision="ieee")
    if HAS_BIAS:
        added = tl.load(bias + expert * COLUMNS + columns, mask=is_column, other=0.0)
        total += added.to(tl.float32)[:, None]
    store_activated(
        tl.trans(total),
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
