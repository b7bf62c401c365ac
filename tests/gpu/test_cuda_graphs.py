"""Captured decode steps on a CUDA device have the same bits as the original steps."""

import pytest
import torch

from stonechat_models.backends.transformers.cuda_graphs import (
    GraphedModel,
    buckets,
    last_tokens,
    parity_sequences,
)
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
    assert model._graphs.keys() == set(buckets(MAX_NUM_SEQS))
    assert progress_lines[-1].startswith("captured 7 CUDA graphs in ")


@pytest.mark.parametrize("num_seqs", range(1, MAX_NUM_SEQS + 1))
@torch.inference_mode()
def test_a_replay_has_the_bits_of_its_step(model, num_seqs, device):
    sequences = parity_sequences(model.info).to(device)
    model.model.forward(sequences)
    batch = last_tokens(sequences, num_seqs)
    actual = model.forward(batch).clone()
    size = next(size for size in model._buckets if size >= num_seqs)
    expected = model.model.forward(model._buffers.view(size, model.info.block_size))[:num_seqs]
    assert torch.equal(actual, expected)
    plain = model.model.forward(batch)
    spread = float(plain.std())
    assert float((actual - plain).abs().max()) < 0.1 * spread


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
    assert lines[-1].startswith("running without CUDA graphs: ")
    assert engine.model._graphs == {}
    actual = generate_all(engine, [[5, 6, 7]], greedy(6))
    assert [r.token_ids for r in actual] == [r.token_ids for r in plain]
