"""Attention of one query token per sequence over its paged context, with the keys split up.

A first kernel computes a partial result for each sequence, KV head and split. A second kernel
combines the splits (flash-decoding). The number of splits does not depend on data on the device, so
both kernels can be part of a CUDA graph.
"""

import triton
import triton.language as tl

from stonechat_models.backends.transformers.attention.triton_tile import (
    LOG2E,
    attend_tile,
    first_key,
)


@triton.jit(do_not_specialize=["stride_table"])  # it changes from step to step
def decode_kernel(
    query,  # [T, H, DK]
    keys,  # [slots, Hkv, DK]
    values,  # [slots, Hkv, DV]
    query_start,  # int32[N + 1]
    context_lens,  # int32[N]
    block_table,  # int32[N, W]
    partial,  # float32[N, H, NUM_SPLITS, DV]
    peaks,  # float32[N, H, NUM_SPLITS]
    totals,  # float32[N, H, NUM_SPLITS]
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
    NUM_SPLITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Program (i, kv_head, split). Skips sequences with more than one query token."""
    i = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    token = tl.load(query_start + i)
    if tl.load(query_start + i + 1) - token != 1:
        return
    context_len = tl.load(context_lens + i)

    rows = tl.arange(0, BLOCK_M)
    row_positions = tl.zeros([BLOCK_M], dtype=tl.int32) + context_len - 1
    row_firsts = first_key(row_positions, window, chunk, HAS_WINDOW, HAS_CHUNKS)
    first = first_key(context_len - 1, window, chunk, HAS_WINDOW, HAS_CHUNKS) // BLOCK_K * BLOCK_K
    num_tiles = tl.cdiv(context_len - first, BLOCK_K)
    span = tl.cdiv(num_tiles, NUM_SPLITS) * BLOCK_K
    first += split * span
    last = tl.minimum(first + span, context_len)

    heads = kv_head * GROUP + rows
    is_head = rows < GROUP
    offsets_dk = tl.arange(0, BLOCK_DK)
    tile = tl.load(
        query
        + token.to(tl.int64) * stride_query_token
        + heads[:, None] * stride_query_head
        + offsets_dk[None, :],
        mask=is_head[:, None] & (offsets_dk < DK)[None, :],
        other=0.0,
    )
    output, peak, total = attend_tile(
        tile,
        row_positions,
        row_firsts,
        first,
        last,
        keys + kv_head * stride_key_head,
        values + kv_head * stride_value_head,
        block_table + i.to(tl.int64) * stride_table,
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
    num_heads = tl.num_programs(1) * GROUP
    at = (i.to(tl.int64) * num_heads + heads) * NUM_SPLITS + split
    offsets_dv = tl.arange(0, BLOCK_DV)
    tl.store(
        partial + at[:, None] * DV + offsets_dv[None, :],
        output,
        mask=is_head[:, None] & (offsets_dv < DV)[None, :],
    )
    tl.store(peaks + at, peak, mask=is_head)
    tl.store(totals + at, total, mask=is_head)


@triton.jit
def combine_kernel(
    partial,  # float32[N, H, NUM_SPLITS, DV]
    peaks,  # float32[N, H, NUM_SPLITS]
    totals,  # float32[N, H, NUM_SPLITS]
    sinks,  # [H]
    query_start,  # int32[N + 1]
    output,  # [T, H, DV], contiguous
    NUM_SPLITS: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Program (i, head): sums the head's splits, each scaled to the largest score of all."""
    i = tl.program_id(0)
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    token = tl.load(query_start + i)
    if tl.load(query_start + i + 1) - token != 1:
        return
    at = (i.to(tl.int64) * num_heads + head) * NUM_SPLITS
    splits = tl.arange(0, NUM_SPLITS)
    offsets = tl.arange(0, BLOCK_DV)
    is_value = offsets < DV
    split_peaks = tl.load(peaks + at + splits)
    peak = tl.max(split_peaks, 0)
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        peak = tl.maximum(peak, sink)
    peak = tl.where(peak == float("-inf"), 0.0, peak)  # a padding row sees no keys
    scale = tl.exp2(split_peaks - peak)
    total = tl.sum(tl.load(totals + at + splits) * scale, 0)
    if HAS_SINKS:
        total += tl.exp2(sink - peak)
    parts = tl.load(
        partial + (at + splits)[:, None] * DV + offsets[None, :],
        mask=is_value[None, :],
        other=0.0,
    )
    summed = tl.sum(parts * scale[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    row = token.to(tl.int64) * num_heads + head
    tl.store(output + row * DV + offsets, summed.to(output.dtype.element_ty), mask=is_value)
