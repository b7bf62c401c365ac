"""Attention of packed query tokens over paged contexts, including cached prefixes."""

import triton
import triton.language as tl

from stonechat_models.backends.transformers.attention.triton_tile import (
    attend_tile,
    finished,
    first_blocks,
    first_key,
)
from stonechat_models.hardware.dependent_launch import wait_for_inputs


@triton.jit
def sequence_of_tile(query_start, tile, num_seqs, BLOCK_Q: tl.constexpr):
    """The sequence that owns a tile of query tokens, by binary search.

    Sequence i owns the tiles from `query_start[i] // BLOCK_Q + i` on. They are enough for its
    tokens, and no tiles of earlier sequences need to be counted.
    """
    low = 0
    high = num_seqs
    while low < high:
        middle = (low + high) // 2
        first = tl.load(query_start + middle) // BLOCK_Q + middle
        if first <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit(do_not_specialize=["num_seqs", "stride_table", "window", "chunk"])  # they vary
def prefill_kernel(
    query,  # [T, H, DK]
    keys,  # [slots, Hkv, DK]
    values,  # [slots, Hkv, DV]
    query_start,  # int32[N + 1]
    context_lens,  # int32[N]
    block_table,  # int32[N, W]
    sinks,  # [H]
    visible_ends,  # int32[T], see `StepMedia`
    output,  # [T, H, DV], contiguous
    num_seqs,
    stride_query_token,
    stride_query_head,
    stride_key,
    stride_key_head,
    stride_value,
    stride_value_head,
    stride_table,
    scaling,
    softcap,
    window,
    chunk,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CHUNKS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_ENDS: tl.constexpr,
    MIN_QUERIES: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (tile, kv_head): BLOCK_Q tokens of one sequence, each with GROUP heads.

    Skips sequences with fewer than MIN_QUERIES query tokens. Without HAS_ENDS, no token sees later
    ones.
    """
    wait_for_inputs(EARLY)
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    i = sequence_of_tile(query_start, tile, num_seqs, BLOCK_Q)
    start = tl.load(query_start + i)
    num_queries = tl.load(query_start + i + 1) - start
    tile_start = (tile - (start // BLOCK_Q + i)) * BLOCK_Q
    if (tile_start >= num_queries) | (num_queries < MIN_QUERIES):
        return
    context_len = tl.load(context_lens + i)

    rows = tl.arange(0, BLOCK_M)
    token_of_row = tile_start + rows // GROUP
    is_row = (rows < BLOCK_Q * GROUP) & (token_of_row < num_queries)
    heads = kv_head * GROUP + rows % GROUP
    tokens = (start + token_of_row).to(tl.int64)
    first_position = context_len - num_queries + tile_start
    row_positions = context_len - num_queries + token_of_row
    row_lasts = row_positions
    last = tl.minimum(first_position + BLOCK_Q, context_len)
    if HAS_ENDS:
        ends = tl.load(visible_ends + tokens, mask=is_row, other=0)
        row_lasts = tl.where(is_row, ends - 1, row_positions)
        last = tl.maximum(last, tl.max(ends, 0))
    row_firsts = first_key(row_positions, window, chunk, HAS_WINDOW, HAS_CHUNKS)
    first = first_key(first_position, window, chunk, HAS_WINDOW, HAS_CHUNKS) // BLOCK_K * BLOCK_K

    offsets_dk = tl.arange(0, BLOCK_DK)
    loaded = tl.load(
        query
        + tokens[:, None] * stride_query_token
        + heads[:, None] * stride_query_head
        + offsets_dk[None, :],
        mask=is_row[:, None] & (offsets_dk < DK)[None, :],
        other=0.0,
    )
    table = block_table + i.to(tl.int64) * stride_table
    result, peak, total = attend_tile(
        loaded,
        row_lasts,
        row_firsts,
        first,
        last,
        first_blocks(table, first, last, BLOCK_SIZE, BLOCK_K),
        keys + kv_head * stride_key_head,
        values + kv_head * stride_value_head,
        table,
        stride_key,
        stride_value,
        scaling,
        softcap,
        BLOCK_SIZE,
        BLOCK_M,
        BLOCK_K,
        DK,
        DV,
        BLOCK_DK,
        BLOCK_DV,
        HAS_SOFTCAP,
        HAS_WINDOW or HAS_CHUNKS,
        PRECISION,
        UPCAST,
    )
    result = finished(result, peak, total, sinks, heads, is_row, HAS_SINKS)
    num_heads = tl.num_programs(1) * GROUP
    at = tokens * num_heads + heads
    offsets_dv = tl.arange(0, BLOCK_DV)
    tl.store(
        output + at[:, None] * DV + offsets_dv[None, :],
        result.to(output.dtype.element_ty),
        mask=is_row[:, None] & (offsets_dv < DV)[None, :],
    )
