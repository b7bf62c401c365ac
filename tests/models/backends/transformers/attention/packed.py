"""Packed batches over scattered blocks, for tests of attention backends."""

import itertools
from dataclasses import replace

import torch

from stonechat_models.backends.base import ForwardBatch, StepMedia


def packed_batch(
    lengths: list[tuple[int, int]],
    block_size: int,
    num_blocks: int,
    generator: torch.Generator,
    device: str = "cpu",
) -> ForwardBatch:
    """`lengths` are (query tokens, context length) per sequence. Blocks are scattered."""
    query_start = [0, *itertools.accumulate(q for q, _ in lengths)]
    context_lens = [context for _, context in lengths]
    free = torch.randperm(num_blocks, generator=generator).tolist()
    width = max(1, max(-(-c // block_size) for c in context_lens))
    table = torch.zeros(len(lengths), width, dtype=torch.int32)
    slots, positions = [], []
    for i, (q, c) in enumerate(lengths):
        blocks = [free.pop() for _ in range(-(-c // block_size))]
        table[i, : len(blocks)] = torch.tensor(blocks)
        for p in range(max(0, c - q), c):
            positions.append(p)
            slots.append(blocks[p // block_size] * block_size + p % block_size)
    return ForwardBatch(
        token_ids=torch.zeros(query_start[-1], dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
        query_start=torch.tensor(query_start, dtype=torch.int32),
        context_lens=torch.tensor(context_lens, dtype=torch.int32),
        block_table=table,
        logits_index=torch.zeros(0, dtype=torch.int64),
        query_start_list=query_start,
        context_lens_list=context_lens,
    ).to(torch.device(device))


def with_runs(batch: ForwardBatch, runs: list[list[tuple[int, int]]]) -> ForwardBatch:
    """The step, where the tokens of each run of a sequence's positions see each other."""
    ends = (batch.positions + 1).tolist()
    for i, sequence_runs in enumerate(runs):
        start = batch.query_start_list[i]
        first = batch.context_lens_list[i] - (batch.query_start_list[i + 1] - start)
        for run_start, run_end in sequence_runs:
            for position in range(max(first, run_start), run_end):
                ends[start + position - first] = run_end
    nothing = batch.positions[:0]
    visible_ends = torch.tensor(ends, dtype=torch.int32, device=batch.positions.device)
    return replace(batch, media=StepMedia(nothing, nothing, visible_ends=visible_ends))


def decode_rows(batch: ForwardBatch, rows: list[int]) -> ForwardBatch:
    """These sequences of a decode step alone, for a backend's `attend`."""
    return replace(
        batch,
        query_start=batch.query_start[: len(rows) + 1],
        context_lens=batch.context_lens[rows],
        block_table=batch.block_table[rows],
        query_start_list=list(range(len(rows) + 1)),
        context_lens_list=[batch.context_lens_list[i] for i in rows],
    )
