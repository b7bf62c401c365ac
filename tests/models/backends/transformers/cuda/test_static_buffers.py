"""The shapes of captured steps, and how smaller steps are padded to them."""

from itertools import pairwise

import pytest
import torch

from stonechat_models.backends.transformers.cuda.memory import largest_batch
from stonechat_models.backends.transformers.cuda.static_buffers import (
    StaticBuffers,
    StepShape,
    buckets,
    captured_shapes,
    mixed_shapes,
)
from stonechat_models.backends.transformers.verify import random_batch

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def allocate(*shapes):
    return StaticBuffers.allocate(
        shapes, table_width=9, padding_slot=99, vocab_size=5, device=CPU, padding_state=7
    )


def test_buckets():
    assert buckets(1) == [1]
    assert buckets(8) == [1, 2, 4, 8]
    assert buckets(6) == [1, 2, 4, 6]
    assert buckets(256) == [2**i for i in range(9)]


def test_shapes_of_mixed_steps():
    shapes = mixed_shapes(256, 8192)
    assert [(s.tokens, s.seqs, s.rows) for s in shapes] == [
        (16, 8, 16),
        *((64, 8, 16), (64, 32, 64)),
        *((128, 8, 16), (128, 64, 128)),
        *((256, 8, 16), (256, 64, 128), (256, 256, 256)),
        *((384, 8, 16), (384, 64, 128), (384, 256, 320)),
        *((512, 8, 16), (512, 64, 128), (512, 256, 320)),
    ]
    assert [(s.tokens, s.seqs, s.rows) for s in mixed_shapes(3, 24)] == [(16, 3, 16), (24, 3, 24)]
    assert [(s.tokens, s.seqs, s.rows) for s in mixed_shapes(9, 80)] == [
        *((16, 8, 16), (64, 8, 16), (64, 9, 64)),
        *((80, 8, 16), (80, 9, 80)),
    ]
    assert mixed_shapes(4, 15) == []


def test_shapes_by_attention_backend():
    decode = [StepShape(n, n, n, is_decode=True) for n in (1, 2, 4)]
    assert captured_shapes("batched", 4, 100) == decode
    assert captured_shapes("triton", 4, 100) == decode + mixed_shapes(4, 100)
    assert captured_shapes("triton", 4, 100, packs_prompts=False) == decode


def test_the_host_is_told_of_single_tokens_and_of_prompts():
    """Kernels choose their grids by these numbers."""
    for shape in mixed_shapes(256, 8192):
        starts = shape.query_start_list()
        lengths = [b - a for a, b in pairwise(starts)]
        assert len(lengths) == shape.seqs + 1
        assert starts[-1] == shape.tokens
        assert lengths.count(1) == max(1, shape.seqs // 4)
    assert StepShape.decode(3).query_start_list() == [0, 1, 2, 3]


def test_rows_that_a_decode_step_does_not_fill_have_the_padding_slot_and_state():
    buffers = allocate(StepShape.decode(4))
    full, single = (largest_batch(n, n, 8, 2) for n in (4, 1))
    buffers.fill(full, StepShape.decode(4))
    assert sorted(buffers.slot_mapping.tolist()) == [0, 2, 4, 6]
    buffers.fill(single, StepShape.decode(2))
    view = buffers.view(StepShape.decode(2), block_size=2)
    assert view.slot_mapping.tolist() == [0, 99]
    assert view.context_lens.tolist() == [1, 0]
    assert view.state_index.tolist() == [0, 7]
    assert view.query_start.tolist() == [0, 1, 2]
    assert view.logits_index.tolist() == [0, 1]
    assert view.token_ids.data_ptr() == buffers.token_ids.data_ptr()
    assert view.context_lens_list == [18, 18]


def test_padding_of_a_mixed_step_is_one_more_sequence():
    shape = StepShape(tokens=16, seqs=4, rows=5)
    buffers = allocate(shape)
    full = random_batch([(9, 9), (1, 30), (5, 7), (1, 1)], 4, vocab_size=50)
    batch = random_batch([(1, 30), (6, 8)], 4, vocab_size=50)
    for step in (full, batch):
        buffers.fill(step, shape)
        view = buffers.view(shape, block_size=4)
        num_tokens, num_seqs, width = step.num_tokens, step.num_seqs, step.block_table.shape[1]
        for name in ("token_ids", "positions", "slot_mapping"):
            assert torch.equal(getattr(view, name)[:num_tokens], getattr(step, name)), name
        assert torch.equal(view.query_start[: num_seqs + 1], step.query_start)
        assert torch.equal(view.context_lens[:num_seqs], step.context_lens)
        assert torch.equal(view.block_table[:num_seqs, :width], step.block_table)
        assert torch.equal(view.logits_index[:num_seqs], step.logits_index)
    assert view.query_start.tolist() == [0, 1, 7, 16, 16, 16]
    assert view.context_lens.tolist() == [30, 8, 0, 0, 0]
    assert view.slot_mapping[7:].tolist() == [99] * 9
    assert view.token_ids[7:].tolist() == view.positions[7:].tolist() == [0] * 9
    assert view.logits_index.tolist() == [0, 6, 0, 0, 0]


def test_buffers_that_were_never_filled_are_all_padding():
    small, large = StepShape(16, 4, 5), StepShape(64, 8, 9)
    buffers = allocate(small, large)
    buffers.fill(random_batch([(36, 36), (9, 9)], 4, vocab_size=50), large)
    buffers.clear(small)
    view = buffers.view(small, block_size=4)
    assert view.query_start.tolist() == [0, *[16] * 5]
    assert view.context_lens.tolist() == [0] * 5
    assert view.slot_mapping.tolist() == [99] * 16
    assert view.logits_index.tolist() == [0] * 5


def test_bytes():
    shape = StepShape(16, 4, 5)
    tokens, seqs, rows = 16, 5, 5
    expected = 3 * 8 * tokens + 4 * (2 * (seqs + 1) + seqs + seqs * 9) + 8 * (2 * seqs + rows)
    assert allocate(shape).num_bytes == expected + 4 * rows * 5


STEPS = {
    StepShape(300, 20, 40): [
        random_batch([(150, 150)] + [(1, 60)] * 17 + [(40, 44)], 4, vocab_size=50),
        random_batch([(2, 3)], 4, vocab_size=50),
        random_batch([(15, 700)] * 20, 4, vocab_size=50),
    ],
    StepShape.decode(9): [
        random_batch([(1, 5 * n) for n in range(1, 10)], 4, vocab_size=50),
        random_batch([(1, 600)], 4, vocab_size=50),
    ],
}


@pytest.mark.parametrize("shape", STEPS, ids=str)
def test_one_launch_fills_the_buffers_as_single_copies_do(shape):
    fill_kernel = pytest.importorskip("stonechat_models.backends.transformers.cuda.fill_kernel")
    slow, fast = (
        StaticBuffers.allocate([shape], 200, 12345, 5, DEVICE, padding_state=77) for _ in range(2)
    )
    for batch in STEPS[shape]:
        slow.fill(batch.to(DEVICE), shape)
        fill_kernel.fill_in_one_launch(fast, batch.to(DEVICE), shape)
        names = ("token_ids", "positions", "slot_mapping", "context_lens", "block_table")
        for name in (*names, "state_index"):
            assert torch.equal(getattr(slow, name), getattr(fast, name)), name
        if not shape.is_decode:
            assert torch.equal(slow.query_start, fast.query_start)
            assert torch.equal(slow.logits_index, fast.logits_index)
        assert fill_kernel.fills_right(fast, batch.to(DEVICE), shape)


def test_a_kernel_that_fills_wrong_is_found(monkeypatch):
    fill_kernel = pytest.importorskip("stonechat_models.backends.transformers.cuda.fill_kernel")
    shape = StepShape.decode(4)

    def forgetful(buffers, batch, shape):
        buffers.fill(batch, shape)
        buffers.context_lens[3] = 7

    monkeypatch.setattr(fill_kernel, "fill_in_one_launch", forgetful)
    batch = random_batch([(1, 5)] * 3, 4, vocab_size=50)
    assert not fill_kernel.fills_right(allocate(shape), batch, shape)
