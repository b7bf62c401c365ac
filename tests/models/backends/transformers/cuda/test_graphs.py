"""Decoding with CUDA graphs, with captures that run the step again on the same static memory.

`tests/gpu` tests real capture and replay on a CUDA device.
"""

import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.attention.triton_backend import TritonBackend
from stonechat_models.backends.transformers.cuda import fill_kernel
from stonechat_models.backends.transformers.cuda import graphs as cuda_graphs
from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.cuda.memory import largest_batch
from stonechat_models.backends.transformers.cuda.parity_steps import parity_sequences
from stonechat_models.backends.transformers.cuda.static_buffers import StaticBuffers
from tests.models.device_lengths import DeviceLengths
from tests.models.engines import CPU, generate_all, greedy, make_engine, reference_greedy
from tests.models.tiny_models import VOCAB_SIZE, tiny_model
from tests.nightly import nightly

PROMPT_LENS = [1, 30, 9]


class RerunCapturer:
    """Repeats a step by running it. Its output is always in the same tensor, as with a graph."""

    def __init__(self):
        self.num_replays = 0

    def capture(self, step):
        output = step().clone()

        def replay():
            self.num_replays += 1
            return output.copy_(step())

        return replay


class FailingCapturer:
    def capture(self, step):
        raise RuntimeError("operation not permitted when stream is capturing")


def graphed_engine(module, capturer, lines=None, backend=None, **limits):
    engine = make_engine(module, backend or DeviceLengths(), **limits)
    model = GraphedModel(engine.model, CPU)
    model.capture(capturer, (lines if lines is not None else []).append)
    engine.model = model
    return engine


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in PROMPT_LENS]


@pytest.mark.parametrize(
    "family", ["llama", *nightly("gemma2", "gpt_oss", "qwen3_moe", "llama4_text")]
)
def test_tokens_are_those_of_plain_transformers(family, prompts):
    module = tiny_model(family)
    references = [reference_greedy(module, prompt, 6) for prompt in prompts]
    capturer = RerunCapturer()
    engine = graphed_engine(module, capturer, max_num_seqs=3, max_batch_tokens=24)
    results = generate_all(engine, prompts, greedy(6))
    assert [r.token_ids for r in results] == [token_ids for token_ids, _ in references]
    for result, (_, logprobs) in zip(results, references, strict=True):
        for row, entry in zip(logprobs, result.logprobs, strict=True):
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)
    assert capturer.num_replays >= 5


def test_tokens_with_the_triton_kernels_in_both_kinds_of_graphs():
    module = tiny_model("llama", num_hidden_layers=1)
    expected = [reference_greedy(module, prompt, 2)[0] for prompt in ([5, 6, 7], [8])]
    engine = graphed_engine(
        module, RerunCapturer(), backend=TritonBackend(8), max_num_seqs=2, max_batch_tokens=16
    )
    assert [(s.tokens, s.seqs) for s in engine.model._graphs] == [(16, 2), (2, 2), (1, 1)]
    engine.model.model.forward = None  # every step replays a graph
    results = generate_all(engine, [[5, 6, 7], [8]], greedy(2))
    assert [r.token_ids for r in results] == expected


def test_a_model_that_cannot_be_captured_runs_without_graphs(prompts):
    module = tiny_model("llama")
    expected, _ = reference_greedy(module, prompts[2], 5)
    lines = []
    engine = graphed_engine(module, FailingCapturer(), lines, max_num_seqs=4)
    assert "without CUDA graphs" in lines[-1]
    assert generate_all(engine, prompts[2:3], greedy(5))[0].token_ids == expected


def test_progress_is_reported(prompts):
    lines = []
    graphed_engine(tiny_model("llama"), RerunCapturer(), lines, max_num_seqs=6)
    assert "up to 6" in lines[0]
    assert lines[1].startswith("captured 6 CUDA graphs in ")  # 4 of decode, 2 of mixed steps


def test_the_largest_step_can_be_run():
    batch = largest_batch(num_tokens=50, num_seqs=7, max_model_len=128, block_size=4)
    assert batch.num_tokens == 50
    assert batch.num_seqs == 7 == len(batch.logits_index)
    assert len(set(batch.slot_mapping.tolist())) == 50
    module = tiny_model("llama")
    logits = make_engine(module, num_blocks=20).model.forward(batch)
    assert logits.shape == (7, VOCAB_SIZE)
    _, expected = reference_greedy(module, [0] * 8, 1)
    assert batch.context_lens_list[0] == 8
    torch.testing.assert_close(logits[0].log_softmax(0), expected[0].float())
    assert largest_batch(50, 2, 16, 4).context_lens_list == [16, 16]


def test_no_step_builds_a_mask(prompts, monkeypatch):
    """Building a mask would wait for the device, to see whether sequences are packed."""
    engine = make_engine(tiny_model("mistral"), TritonBackend(8))

    def build(*args):
        raise AssertionError("a mask is built")

    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", build)
    results = generate_all(engine, prompts, greedy(2))
    assert all(result.error is None for result in results)


class ChangingCapturer(RerunCapturer):
    """Its replays are right, except for what `change` does to the logits."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def capture(self, step):
        replay = super().capture(step)
        return lambda: self.change(replay())


class StaleCapturer:
    """Every replay returns the logits of the capture."""

    def capture(self, step):
        output = step()
        return lambda: output


def raise_in_replay(*_):
    raise RuntimeError("an illegal memory access was encountered\nand pages of more")


def one_row_wrong(logits):
    if len(logits) == 4:
        logits[2] = logits[2].flip(0)
    return logits


def fail_without_a_message(logits):
    raise AssertionError


FAULTY_CAPTURERS = {
    "stale": StaleCapturer(),
    "rows shifted": ChangingCapturer(lambda logits: logits.roll(1, 0) + 1e-2),
    "a little off": ChangingCapturer(lambda logits: logits * 1.01),
    "NaN": ChangingCapturer(lambda logits: logits.fill_(float("nan"))),
    "raises": ChangingCapturer(raise_in_replay),
    "fails": ChangingCapturer(fail_without_a_message),
}


@pytest.mark.parametrize("capturer", FAULTY_CAPTURERS.values(), ids=FAULTY_CAPTURERS)
def test_graphs_that_give_other_logits_are_not_used(capturer, prompts):
    module = tiny_model("llama")
    expected, _ = reference_greedy(module, prompts[2], 5)
    lines = []
    engine = graphed_engine(module, capturer, lines, BatchedBackend(), max_num_seqs=4)
    assert lines[-1].startswith("running without CUDA graphs: ")
    assert "\n" not in lines[-1]
    assert engine.model._graphs == {}
    assert generate_all(engine, prompts[2:3], greedy(5))[0].token_ids == expected


def test_one_graph_that_gives_other_logits_is_dropped(prompts):
    module = tiny_model("llama")
    expected = [reference_greedy(module, prompt, 3)[0] for prompt in prompts]
    lines = []
    capturer = ChangingCapturer(one_row_wrong)
    engine = graphed_engine(module, capturer, lines, BatchedBackend(), max_num_seqs=4)
    assert lines[-1].startswith("captured 2 CUDA graphs in ")
    assert [shape.seqs for shape in engine.model._graphs] == [2, 1]
    results = generate_all(engine, prompts, greedy(3))
    assert [result.token_ids for result in results] == expected


def test_graphs_are_used_if_plain_steps_differ_from_themselves():
    """One row of each step differs, as if a router chooses between two experts that nearly tie."""
    engine = make_engine(tiny_model("llama"), BatchedBackend(), max_num_seqs=4)
    forward = engine.model.forward
    generator = torch.Generator().manual_seed(0)

    def unsteady(batch):
        logits = forward(batch).clone()
        logits[0] += 0.1 * torch.randn(logits.shape[1], generator=generator)
        return logits

    engine.model.forward = unsteady
    lines = []
    GraphedModel(engine.model, CPU).capture(RerunCapturer(), lines.append)
    assert lines[-1].endswith("and checked them")


def test_padding_that_changes_other_rows_is_found():
    engine = make_engine(tiny_model("llama"), BatchedBackend(), max_num_seqs=8)
    forward = engine.model.forward

    def padded_rows_disturb(batch):
        logits = forward(batch)
        is_padded = (batch.context_lens == 0).any()
        return logits + torch.linspace(0, 1, logits.shape[1]) if is_padded else logits

    engine.model.forward = padded_rows_disturb
    lines = []
    model = GraphedModel(engine.model, CPU)
    model.capture(RerunCapturer(), lines.append)
    assert "padded decode steps give logits that are off by" in lines[-1]


@pytest.mark.parametrize(
    ("fills_right", "reason"),
    [
        (lambda *_: True, None),
        (lambda *_: False, "the kernel copies other numbers"),
        (raise_in_replay, "an illegal memory access was encountered"),
    ],
    ids=["right", "wrong", "raises"],
)
def test_a_fill_kernel_that_fails_is_not_used(fills_right, reason, monkeypatch):
    class OnCuda:
        def to(self, device):
            return parity_sequences(model.info)

    model = GraphedModel(make_engine(tiny_model("llama"), DeviceLengths()).model, CPU)
    model._device = torch.device("cuda")
    monkeypatch.setattr(cuda_graphs, "parity_sequences", lambda _: OnCuda())
    monkeypatch.setattr(fill_kernel, "fills_right", fills_right)
    lines = []
    model._choose_fill(lines.append)
    assert lines == ([f"copying the inputs of CUDA graphs one by one: {reason}"] if reason else [])
    expected = StaticBuffers.fill if reason else fill_kernel.fill_in_one_launch
    assert model._fill is expected


@pytest.mark.parametrize("num_blocks", [1, 2, 5])
def test_graphs_are_checked_in_the_smallest_kv_cache(num_blocks):
    engine = make_engine(tiny_model("qwen3_moe"), BatchedBackend(), num_blocks=num_blocks)
    model = GraphedModel(engine.model, CPU)
    lines = []
    model.capture(RerunCapturer(), lines.append)
    assert lines[-1].endswith("and checked them")
