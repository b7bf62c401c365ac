"""The steps that CUDA graphs are checked on: a few sequences, and their last tokens again."""

from collections.abc import Sequence
from itertools import accumulate

import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.cuda.static_buffers import StepShape
from stonechat_models.backends.transformers.verify import random_batch
from stonechat_models.model_info import ModelInfo

LENGTHS = (3, 50, 19, 7)
"""Lengths of the sequences, cut to what the KV cache holds."""


def parity_sequences(info: ModelInfo) -> ForwardBatch:
    """A prefill of a few sequences of random tokens that fit in the caches; on the CPU."""
    num_seqs = min(len(LENGTHS), info.num_blocks)
    if info.keeps_state:
        num_seqs = min(num_seqs, info.max_num_seqs)
    longest = min(info.max_model_len, info.num_blocks // num_seqs * info.block_size)
    lengths = [min(length, longest) for length in LENGTHS[:num_seqs]]
    return random_batch([(n, n) for n in lengths], info.block_size, vocab_size=info.vocab_size)


def last_tokens(batch: ForwardBatch, num_seqs: int) -> ForwardBatch:
    """A decode step of `num_seqs` rows that computes the last tokens of `batch` again.

    Row i is sequence i of `batch`, with the state in slot i. If there are more rows than sequences,
    the sequences repeat.
    """
    return _again(batch, [(i % batch.num_seqs, 1, 1) for i in range(num_seqs)])


def mixed_step(batch: ForwardBatch, shape: StepShape) -> ForwardBatch:
    """A step of up to `shape` that computes last tokens of `batch` again, as long as they fit.

    In turn it has one token of a sequence, a whole sequence, two tokens with logits, and a whole
    sequence. The sequences of `batch` repeat.
    """
    starts = batch.query_start_list
    items: list[tuple[int, int, int]] = []
    left = shape.tokens
    for i in range(4 * shape.seqs):
        sequence = i % batch.num_seqs
        length = starts[sequence + 1] - starts[sequence]
        count = min(length, (1, length, 2, length)[i % 4])
        if count <= left and len(items) < shape.seqs:
            items.append((sequence, count, min(count, 1 + (i % 4 == 2))))
            left -= count
    return _again(batch, items)


def _again(batch: ForwardBatch, items: Sequence[tuple[int, int, int]]) -> ForwardBatch:
    """A step that computes last tokens of sequences of `batch` again.

    An item has the sequence, how many of its tokens, and how many of these get logits.
    """
    device = batch.token_ids.device
    query_start = [0, *accumulate(count for _, count, _ in items)]
    tokens: list[int] = []
    logits_index: list[int] = []
    for sequence, count, num_rows in items:
        end = batch.query_start_list[sequence + 1]
        tokens += range(end - count, end)
        logits_index += range(len(tokens) - num_rows, len(tokens))
    sequences = [sequence for sequence, _, _ in items]
    rows = torch.tensor(sequences, device=device)
    index = torch.tensor(tokens, device=device)
    return ForwardBatch(
        token_ids=batch.token_ids[index],
        positions=batch.positions[index],
        slot_mapping=batch.slot_mapping[index],
        query_start=torch.tensor(query_start, dtype=torch.int32, device=device),
        context_lens=batch.context_lens[rows],
        block_table=batch.block_table[rows],
        logits_index=torch.tensor(logits_index, device=device),
        query_start_list=query_start,
        context_lens_list=[batch.context_lens_list[i] for i in sequences],
        state_slots=range(len(items)),
        state_index=torch.arange(len(items), device=device),
        num_rows_list=[num_rows for _, _, num_rows in items],
    )
