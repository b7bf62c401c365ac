"""Attention backends against a plain float64 loop over queries and heads."""

import itertools

import pytest
import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.attention.row import RowBackend
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.backends.transformers.kv_cache import LayerKV
from tests.models.backends.transformers.attention.packed import with_runs

BACKENDS = [SdpaBackend(), BatchedBackend(), RowBackend()]
BLOCK_SIZE = 4
NUM_BLOCKS = 40


def make_batch(lengths: list[tuple[int, int]], generator) -> ForwardBatch:
    """`lengths` are (query tokens, context length) per sequence. Blocks are scattered."""
    query_start = [0, *itertools.accumulate(q for q, _ in lengths)]
    context_lens = [context for _, context in lengths]
    free = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
    width = max(-(-c // BLOCK_SIZE) for c in context_lens)
    table = torch.zeros(len(lengths), width, dtype=torch.int32)
    slots, positions = [], []
    for i, (q, c) in enumerate(lengths):
        blocks = [free.pop() for _ in range(-(-c // BLOCK_SIZE))]
        table[i, : len(blocks)] = torch.tensor(blocks)
        for p in range(c - q, c):
            positions.append(p)
            slots.append(blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE)
    return ForwardBatch(
        token_ids=torch.zeros(query_start[-1], dtype=torch.int64),
        positions=torch.tensor(positions),
        slot_mapping=torch.tensor(slots),
        query_start=torch.tensor(query_start, dtype=torch.int32),
        context_lens=torch.tensor(context_lens, dtype=torch.int32),
        block_table=table,
        logits_index=torch.zeros(0, dtype=torch.int64),
        query_start_list=query_start,
        context_lens_list=context_lens,
    )


def attend_by_hand(query, keys, values, batch, spec):
    output = torch.zeros(*query.shape[:2], values.shape[2], dtype=torch.float64)
    groups = query.shape[1] // keys.shape[1]
    for i in range(batch.num_seqs):
        start, end = batch.query_start_list[i : i + 2]
        context = batch.context_lens_list[i]
        slot = [
            int(batch.block_table[i, p // BLOCK_SIZE]) * BLOCK_SIZE + p % BLOCK_SIZE
            for p in range(context)
        ]
        for row, head in itertools.product(range(start, end), range(query.shape[1])):
            position = context - (end - row)
            first = 0 if spec.sliding_window is None else max(0, position - spec.sliding_window + 1)
            if spec.chunk_size is not None:
                first = max(first, position - position % spec.chunk_size)
            last = position + 1 if batch.media is None else int(batch.media.visible_ends[row])
            visible = slot[first:last]
            scores = (
                keys[visible, head // groups].double() @ query[row, head].double() * spec.scaling
            )
            if spec.softcap is not None:
                scores = spec.softcap * torch.tanh(scores / spec.softcap)
            weights = scores.exp()
            total = weights.sum()
            if spec.sinks is not None:
                total = total + spec.sinks[head].double().exp()
            output[row, head] = (weights / total) @ values[visible, head // groups].double()
    return output


LENGTHS = {
    "decode": [(1, 1), (1, 9), (1, 30), (1, 4)],
    "prefill": [(7, 7), (1, 1), (13, 13)],
    "chunks": [(5, 17), (1, 12), (4, 4), (2, 25)],
}
SPECS = {
    "plain": AttentionSpec(scaling=0.3),
    "window": AttentionSpec(scaling=0.3, sliding_window=5),
    "softcap": AttentionSpec(scaling=0.3, softcap=2.0),
    "sinks": AttentionSpec(scaling=0.3, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
    "chunks": AttentionSpec(scaling=0.3, chunk_size=6),
    "single": AttentionSpec(scaling=0.3, chunk_size=1),
    "window and chunks": AttentionSpec(scaling=0.3, sliding_window=4, chunk_size=7),
    "all": AttentionSpec(0.3, 6, 3.0, torch.tensor([0.5, -1.0, 2.0, 0.0])),
}


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(("num_kv_heads", "value_size"), [(4, 8), (2, 8), (1, 6)])
def test_backend_equals_a_loop(backend, lengths, spec, num_kv_heads, value_size):
    generator = torch.Generator().manual_seed(3)
    batch = make_batch(lengths, generator)
    slots = NUM_BLOCKS * BLOCK_SIZE
    query = torch.randn(batch.num_tokens, 4, 8, generator=generator)
    keys = torch.randn(slots, num_kv_heads, 8, generator=generator)
    values = torch.randn(slots, num_kv_heads, value_size, generator=generator)
    expected = attend_by_hand(query, keys, values, batch, spec)
    actual = backend.attend(query, LayerKV(keys, values, BLOCK_SIZE), batch, spec)
    torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tokens_of_images_see_those_after_them(backend, spec):
    """Runs that start a sequence, end one, are longer than the window, or began in the cache."""
    generator = torch.Generator().manual_seed(3)
    step = make_batch([(13, 13), (1, 12), (9, 20), (4, 4)], generator)
    batch = with_runs(step, [[(0, 9), (11, 13)], [], [(8, 15), (16, 17)], []])
    slots = NUM_BLOCKS * BLOCK_SIZE
    query = torch.randn(batch.num_tokens, 4, 8, generator=generator)
    keys, values = torch.randn(2, slots, 2, 8, generator=generator)
    expected = attend_by_hand(query, keys, values, batch, spec)
    kv = LayerKV(keys, values, BLOCK_SIZE)
    actual = backend.attend(query, kv, batch, spec)
    torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=1e-5)
    text = slice(13, 14), slice(23, 27)  # the sequences without an image
    causal = backend.attend(query, kv, step, spec)
    assert all(torch.equal(actual[rows], causal[rows]) for rows in text)
    assert not torch.equal(actual[:9], causal[:9])
