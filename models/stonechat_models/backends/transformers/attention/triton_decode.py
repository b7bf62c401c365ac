"""Attention of one query token per sequence over its paged context, with the keys split up.

Each program computes a part: the heads of one KV head, over one split of the keys (flash-decoding).
The last program of a sequence and KV head to end sums up the parts. The number of splits does not
depend on data on the device, so the kernel can be part of a CUDA graph.
"""

import triton
import triton.language as tl

from stonechat_models.backends.transformers.attention.triton_tile import (
    attend_tile,
    finished,
    first_blocks,
    first_key,
)
from stonechat_models.hardware.dependent_launch import prefetch_rows, wait_for_inputs


@triton.jit(do_not_specialize=["stride_table", "window", "chunk"])
def decode_kernel(
    query,  # [T, H, DK]
    keys,  # [slots, Hkv, DK]
    values,  # [slots, Hkv, DV]
    query_start,  # int32[N + 1]
    context_lens,  # int32[N]
    block_table,  # int32[N, W]
    sinks,  # [H]
    output,  # [T, H, DV], contiguous
    partial,  # float32[N, Hkv, splits, GROUP, DV]
    peaks,  # float32[N, Hkv, splits, GROUP]
    totals,  # float32[N, Hkv, splits, GROUP]
    num_done,  # int32[N, Hkv], zeros. They are zeros again at the end.
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
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CHUNKS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (i, kv_head, split). Skips sequences with more than one query token.

    IS_SPLIT: there may be several splits. Without them more programs fit on a multiprocessor.

    What is read before the wait is complete by then. It says where sequences lie, and `fill_kernel`
    writes it before the graph starts, or a copy before the step's first kernel: neither lets a
    kernel start early. The first keys and values are only fetched.
    """
    i = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    num_splits = tl.num_programs(2)
    token = tl.load(query_start + i)
    next_token = tl.load(query_start + i + 1)
    context_len = tl.load(context_lens + i)
    first = first_key(context_len - 1, window, chunk, HAS_WINDOW, HAS_CHUNKS) // BLOCK_K * BLOCK_K
    num_tiles = tl.cdiv(context_len - first, BLOCK_K)
    tiles_per_split = tl.maximum(tl.cdiv(num_tiles, num_splits), 1)
    num_parts = tl.maximum(tl.cdiv(num_tiles, tiles_per_split), 1)
    first += split * tiles_per_split * BLOCK_K
    last = tl.minimum(first + tiles_per_split * BLOCK_K, context_len)
    table = block_table + i.to(tl.int64) * stride_table
    blocks = first_blocks(table, first, last, BLOCK_SIZE, BLOCK_K)
    keys += kv_head * stride_key_head
    values += kv_head * stride_value_head
    if EARLY and split < num_parts:
        slots = blocks.to(tl.int64) * BLOCK_SIZE + (first + tl.arange(0, BLOCK_K)) % BLOCK_SIZE
        fetch_heads(keys + slots[:, None] * stride_key, DK)
        fetch_heads(values + slots[:, None] * stride_value, DV)
    wait_for_inputs(EARLY)
    if (next_token - token != 1) | (split >= num_parts):
        return

    rows = tl.arange(0, BLOCK_M)
    row_positions = tl.zeros([BLOCK_M], dtype=tl.int32) + context_len - 1
    row_firsts = first_key(row_positions, window, chunk, HAS_WINDOW, HAS_CHUNKS)
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
    result, peak, total = attend_tile(
        tile,
        row_positions,
        row_firsts,
        first,
        last,
        blocks,
        keys,
        values,
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
    num_kv_heads = tl.num_programs(1)
    offsets_dv = tl.arange(0, BLOCK_DV)
    is_value = is_head[:, None] & (offsets_dv < DV)[None, :]
    row = (token.to(tl.int64) * num_kv_heads + kv_head) * GROUP
    if not IS_SPLIT or num_parts == 1:
        whole = finished(result, peak, total, sinks, heads, is_head, HAS_SINKS)
        tl.store(
            output + (row + rows)[:, None] * DV + offsets_dv[None, :],
            whole.to(output.dtype.element_ty),
            mask=is_value,
        )
    else:
        pair = i.to(tl.int64) * num_kv_heads + kv_head
        at = (pair * num_splits + split) * GROUP + rows
        tl.store(partial + at[:, None] * DV + offsets_dv[None, :], result, mask=is_value)
        tl.store(peaks + at, peak, mask=is_head)
        tl.store(totals + at, total, mask=is_head)
        tl.debug_barrier()  # all threads have stored before one of them counts the part
        if tl.atomic_add(num_done + pair, 1, sem="acq_rel") == num_parts - 1:
            tl.store(num_done + pair, 0)
            sum_parts(
                partial,
                peaks,
                totals,
                sinks,
                output + row * DV,
                pair * num_splits,
                num_parts,
                kv_head * GROUP,
                GROUP,
                DV,
                BLOCK_GROUP,
                BLOCK_DV,
                PARTS,
                HAS_SINKS,
            )


@triton.jit
def fetch_heads(rows, SIZE: tl.constexpr):
    """Ask for a head of each of `rows` (pointers [R, 1]), up to 512 bytes of it."""
    bytes_per_head: tl.constexpr = SIZE * rows.dtype.element_ty.primitive_bitwidth // 8
    lines: tl.constexpr = 1 if bytes_per_head <= 128 else 2 if bytes_per_head <= 256 else 4
    prefetch_rows(rows, 0, SIZE, lines)


@triton.jit
def sum_parts(
    partial,
    peaks,
    totals,
    sinks,
    output,  # of the group's first head
    first_part,
    num_parts,
    first_head,
    GROUP: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Stores the output of a group: its parts, each scaled to the largest score of all.

    PARTS are loaded at once, from the cache that all multiprocessors share.
    """
    rows = tl.arange(0, BLOCK_GROUP)
    offsets = tl.arange(0, BLOCK_DV)
    is_head = rows < GROUP
    is_value = is_head[:, None] & (offsets < DV)[None, :]
    cells = rows[:, None] * DV + offsets[None, :]
    peak = tl.full([BLOCK_GROUP], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_GROUP], dtype=tl.float32)
    result = tl.zeros([BLOCK_GROUP, BLOCK_DV], dtype=tl.float32)
    for start in range(0, num_parts, PARTS):
        parts = start + tl.arange(0, PARTS)
        is_part = parts < num_parts
        at = (first_part + parts) * GROUP
        mask = is_part[:, None] & is_head[None, :]
        rows_at = at[:, None] + rows[None, :]
        part_peaks = tl.load(peaks + rows_at, mask, other=float("-inf"), cache_modifier=".cg")
        part_totals = tl.load(totals + rows_at, mask, other=0.0, cache_modifier=".cg")
        part = tl.load(
            partial + at[:, None, None] * DV + cells[None, :, :],
            mask=is_part[:, None, None] & is_value[None, :, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_peak = tl.maximum(peak, tl.max(part_peaks, 0))
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        scale = tl.exp2(part_peaks - shift[None, :])
        rescale = tl.exp2(peak - shift)
        total = total * rescale + tl.sum(part_totals * scale, 0)
        result = result * rescale[:, None] + tl.sum(part * scale[:, :, None], 0)
        peak = new_peak
    whole = finished(result, peak, total, sinks, first_head + rows, is_head, HAS_SINKS)
    tl.store(output + cells, whole.to(output.dtype.element_ty), mask=is_value)
