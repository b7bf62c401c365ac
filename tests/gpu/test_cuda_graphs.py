"""Captured decode steps on a CUDA device give the numbers of the original steps."""

import warnings

import pytest
import torch

from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.cuda.parity_steps import (
    last_tokens,
    parity_sequences,
)
from stonechat_models.backends.transformers.cuda.static_buffers import buckets
from stonechat_models.backends.transformers.verify import logits_error
from tests.gpu.test_cuda_engine import build
from tests.models.engines import generate_all, greedy
from tests.models.tiny_models import tiny_model

MAX_NUM_SEQS = 33


@pytest.fixture(scope="module")
def progress_lines():
    return []


@pytest.fixture(scope="module")
def model(progress_lines):
    """A model with and without sliding windows, so that a step has two kinds of kernels."""
    device = torch.device("cuda", 0)
    engine = build(
        tiny_model("gemma2").to(device, torch.bfloat16),
        device,
        max_num_seqs=MAX_NUM_SEQS,
        dtype="bfloat16",
        progress=progress_lines.append,
    )
    assert isinstance(engine.model, GraphedModel)
    return engine.model


def test_every_bucket_is_captured_and_checked(model, progress_lines):
    sizes = {shape.seqs for shape in model._graphs if shape.is_decode}
    assert sizes == set(buckets(MAX_NUM_SEQS))
    assert progress_lines[-1].endswith("and checked them")


@torch.inference_mode()
def test_a_replay_gives_the_numbers_of_its_step(model, device):
    """Their bits too, unless a library chooses other kernels on the stream of the capture."""
    sequences = parity_sequences(model.info).to(device)
    model.model.forward(sequences)
    other_bits = []
    for num_seqs in range(1, MAX_NUM_SEQS + 1):
        batch = last_tokens(sequences, num_seqs)
        actual = model.forward(batch).clone()
        view = model._buffers.view(model._shape_of(batch), model.info.block_size)
        expected = model.model.forward(view)[:num_seqs]
        assert float(logits_error(expected, actual).max()) < 0.1, num_seqs
        assert float(logits_error(model.model.forward(batch), actual).median()) < 0.1, num_seqs
        if not torch.equal(actual, expected):
            other_bits.append(num_seqs)
    if other_bits:
        warnings.warn(f"steps of {other_bits} sequences have other bits in a graph", stacklevel=1)


@torch.inference_mode()
def test_replays_of_several_buckets_in_turn_do_not_disturb_each_other(model, device):
    """The graphs share memory. Each must be right after any other."""
    sequences = parity_sequences(model.info).to(device)
    model.model.forward(sequences)
    alone = {n: model.forward(last_tokens(sequences, n)).clone() for n in (1, 3, 9, 33)}
    for num_seqs in (33, 1, 9, 3, 33, 9, 1, 3):
        again = model.forward(last_tokens(sequences, num_seqs))
        assert torch.equal(again, alone[num_seqs])


def test_a_model_that_waits_for_the_device_runs_without_graphs(device):
    module = tiny_model("llama").to(device)
    norm = module.model.norm
    forward = norm.forward

    def waiting(x):
        assert float(x.abs().max()) >= 0.0
        return forward(x)

    lines = []
    plain = generate_all(build(module, device, eager=True, fuse=False), [[5, 6, 7]], greedy(6))
    norm.forward = waiting
    engine = build(module, device, fuse=False, progress=lines.append)
    assert any(line.startswith("running without CUDA graphs: ") for line in lines)
    assert engine.model._graphs == {}
    actual = generate_all(engine, [[5, 6, 7]], greedy(6))
    assert len(plain[0].token_ids) == 6
    assert [r.token_ids for r in actual] == [r.token_ids for r in plain]
