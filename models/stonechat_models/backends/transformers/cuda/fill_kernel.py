"""One Triton kernel that copies a step into the static buffers of CUDA graphs and pads it."""

import torch
import triton
import triton.language as tl

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.cuda.static_buffers import StaticBuffers, StepShape

BLOCK = 128
"""Numbers that a program copies of each list."""

_VARIES = (
    *("num_tokens", "num_seqs", "num_rows", "width", "stride_table"),
    *("all_tokens", "all_seqs", "all_rows"),
)


@triton.jit(do_not_specialize=_VARIES)
def fill_kernel(
    token_ids,  # int64[T]
    positions,  # int64[T]
    slots,  # int64[T]
    query_start,  # int32[N + 1]
    context_lens,  # int32[N]
    block_table,  # int32[N, width]
    rows,  # int64[R]
    states,  # int64[N]
    to_token_ids,
    to_positions,
    to_slots,
    to_query_start,
    to_context_lens,
    to_block_table,
    to_rows,
    to_states,
    num_tokens,
    num_seqs,
    num_rows,
    width,
    stride_table,
    to_stride_table,
    all_tokens,  # those of the captured step
    all_seqs,
    all_rows,
    padding_slot,
    padding_state,
    IS_MIXED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program p: the p-th BLOCK of each list, and row p of the block table."""
    program = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    at = program * BLOCK + offsets
    is_used = at < num_tokens
    is_token = at < all_tokens
    tl.store(to_token_ids + at, tl.load(token_ids + at, mask=is_used, other=0), mask=is_token)
    tl.store(to_positions + at, tl.load(positions + at, mask=is_used, other=0), mask=is_token)
    slot = tl.load(slots + at, mask=is_used, other=0)
    tl.store(to_slots + at, tl.where(is_used, slot, padding_slot), mask=is_token)
    context_len = tl.load(context_lens + at, mask=at < num_seqs, other=0)
    tl.store(to_context_lens + at, context_len, mask=at < all_seqs)
    state = tl.load(states + at, mask=at < num_seqs, other=0)
    tl.store(to_states + at, tl.where(at < num_seqs, state, padding_state), mask=at < all_seqs)
    if IS_MIXED:
        is_start = at <= num_seqs
        start = tl.load(query_start + at, mask=is_start, other=0)
        tl.store(to_query_start + at, tl.where(is_start, start, all_tokens), mask=at <= all_seqs)
        row = tl.load(rows + at, mask=at < num_rows, other=0)
        tl.store(to_rows + at, row, mask=at < all_rows)
    if program < num_seqs:
        source = block_table + program.to(tl.int64) * stride_table
        target = to_block_table + program.to(tl.int64) * to_stride_table
        for first in range(0, width, BLOCK):
            columns = first + offsets
            is_column = columns < width
            block = tl.load(source + columns, mask=is_column, other=0)
            tl.store(target + columns, block, mask=is_column)


def fill_in_one_launch(buffers: StaticBuffers, batch: ForwardBatch, shape: StepShape) -> None:
    """As `StaticBuffers.fill`."""
    assert batch.state_index is not None
    longest = max(shape.tokens, shape.view_seqs + 1, shape.rows)
    with torch.cuda.device_of(buffers.token_ids):
        fill_kernel[(max(-(-longest // BLOCK), batch.num_seqs),)](
            batch.token_ids,
            batch.positions,
            batch.slot_mapping,
            batch.query_start,
            batch.context_lens,
            batch.block_table,
            batch.logits_index,
            batch.state_index,
            *buffers.inputs(),
            batch.num_tokens,
            batch.num_seqs,
            len(batch.logits_index),
            batch.block_table.shape[1],
            batch.block_table.stride(0),
            buffers.block_table.stride(0),
            shape.tokens,
            shape.view_seqs,
            shape.rows,
            buffers.padding_slot,
            buffers.padding_state,
            IS_MIXED=not shape.is_decode,
            BLOCK=BLOCK,
        )


def fills_right(buffers: StaticBuffers, batch: ForwardBatch, shape: StepShape) -> bool:
    """Whether the kernel fills the buffers as single copies do."""
    results = []
    for fill in (StaticBuffers.fill, fill_in_one_launch):
        for tensor in buffers.inputs():
            tensor.zero_()
        fill(buffers, batch, shape)
        results.append([tensor.clone() for tensor in buffers.inputs()])
    return all(torch.equal(a, b) for a, b in zip(*results, strict=True))
