"""Graphs of steps with prompts and draft tokens, with captures that run the step again.

`tests/gpu` tests real capture and replay on a CUDA device.
"""

import random
from itertools import pairwise

import pytest
import torch

from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.cuda.parity_steps import (
    mixed_step,
    parity_sequences,
)
from stonechat_models.backends.transformers.cuda.static_buffers import StepShape, mixed_shapes
from stonechat_models.types import SamplingParams
from tests.models.backends.transformers.cuda.test_graphs import (
    ChangingCapturer,
    RerunCapturer,
    graphed_engine,
)
from tests.models.device_lengths import DeviceLengths
from tests.models.engines import (
    CPU,
    add,
    generate_all,
    greedy,
    make_engine,
    model_info,
    reference_greedy,
    run,
)
from tests.models.tiny_models import VOCAB_SIZE, tiny_model
from tests.nightly import nightly


@pytest.fixture(scope="module")
def module():
    return tiny_model("llama")


class Steps:
    """Counts the steps of an engine with graphs, and those of them that replay one."""

    def __init__(self, engine):
        self.model = engine.model
        self.shapes: list[StepShape | None] = []
        choose = self.model._shape_of

        def recording(batch):
            self.shapes.append(choose(batch))
            return self.shapes[-1]

        self.model._shape_of = recording


def serve(engine, seed, predictions):
    """Random requests that come while others run. Return all tokens and finish reasons."""
    rng = random.Random(seed)
    results = {}
    shared = [rng.randrange(3, VOCAB_SIZE) for _ in range(20)]
    for i in range(14):
        prompt = shared[: rng.choice([0, 8, 20])]
        prompt = prompt + [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 30))]
        params = SamplingParams(
            max_tokens=rng.randint(1, 25),
            temperature=rng.choice([0.0, 1.0]),
            seed=i,
            top_logprobs=2,
            n=rng.choice([1, 1, 3]),
            prompt_logprobs=1 if rng.random() < 0.1 else None,
        )
        prediction = predictions.get((str(i), 0), ()) if rng.random() < 0.5 else ()
        add(engine, str(i), prompt, params, prediction=tuple(prediction[:-1]))
        for _ in range(rng.randint(0, 3)):
            collect(engine, results)
    while engine.has_work:
        collect(engine, results)
    return results


def collect(engine, results):
    for output in engine.step():
        tokens = results.setdefault((output.request_id, output.index), [])
        tokens += output.token_ids
        if output.finish_reason is not None:
            tokens.append(output.finish_reason)
    engine.scheduler.check_integrity()


LIMITS = {
    "roomy": {"max_num_seqs": 12, "max_batch_tokens": 100},
    "preempting": {"max_num_seqs": 12, "max_batch_tokens": 100, "num_blocks": 24},
    "small steps": {"max_num_seqs": 5, "max_batch_tokens": 17},
}


@pytest.mark.parametrize("overlap", [True, *nightly(False)])
@pytest.mark.parametrize("name", ["preempting", "small steps", *nightly("roomy")])
def test_random_loads_give_the_answers_of_an_engine_without_graphs(module, name, overlap):
    limits = LIMITS[name]
    plain = make_engine(module, overlap=overlap, prompt_lookup="on", **limits)
    engine = graphed_engine(module, RerunCapturer(), overlap=overlap, prompt_lookup="on", **limits)
    steps = Steps(engine)
    expected = serve(plain, 0, {})
    assert serve(engine, 0, expected) == expected
    shapes = [shape for shape in steps.shapes if shape is not None]
    assert len(shapes) > 0.8 * len(steps.shapes)  # log-probabilities of prompts have many rows
    assert {shape.is_decode for shape in shapes} == {False, True}
    if "num_blocks" in limits:
        assert engine.stats().num_preemptions > 0
    assert engine.stats().num_accepted_draft_tokens > 0


def test_steps_that_verify_draft_tokens_replay_a_graph(module):
    prompt = [7, 8, 9]
    expected, _ = reference_greedy(module, prompt, 12)
    engine = graphed_engine(module, RerunCapturer(), max_num_seqs=2)
    steps = Steps(engine)
    add(engine, "r", prompt, greedy(12), prediction=tuple(expected))
    assert run(engine)["r", 0].token_ids == expected
    assert len(steps.shapes) < 8
    assert None not in steps.shapes
    assert engine.stats().num_accepted_draft_tokens >= 6


def test_a_step_takes_the_smallest_shape_that_it_fits_in(module):
    engine = graphed_engine(module, RerunCapturer(), max_num_seqs=12)
    steps = Steps(engine)
    assert {(s.tokens, s.seqs) for s in engine.model._mixed_shapes} == {
        *((16, 8), (64, 8), (64, 12)),
    }
    generate_all(engine, [[5] * 16], greedy(1))
    generate_all(engine, [[9] * 17], greedy(1))
    generate_all(engine, [[i, 6] for i in range(9)], greedy(2))
    shapes = [(s.tokens, s.seqs) for s in steps.shapes]
    assert shapes == [(16, 8), (64, 8), (64, 12), (12, 12)]


def test_steps_with_many_rows_of_logits_run_without_a_graph(module):
    limits = {"max_num_seqs": 3, "max_model_len": 256, "max_batch_tokens": 256}
    engine = graphed_engine(module, RerunCapturer(), **limits)
    steps = Steps(engine)
    for length in (100, 200):
        result = generate_all(engine, [[length] * length], greedy(2, prompt_logprobs=0))[0]
        assert len(result.prompt_logprobs) == length - 1
    assert [s is None for s in steps.shapes] == [False, False, True, False]


def test_longer_steps_run_without_a_graph(module):
    engine = graphed_engine(module, RerunCapturer(), max_batch_tokens=64)
    engine.scheduler.max_batch_tokens = 100
    steps = Steps(engine)
    generate_all(engine, [[5] * 70], greedy(2))
    assert [s is None for s in steps.shapes] == [True, False]


def wrong_in_mixed_steps(logits):
    if len(logits) not in (1, 2, 4, 8):
        logits[1] = logits[1].flip(0)
    return logits


@pytest.mark.parametrize("fault", ["wrong logits", "cannot be captured"])
def test_graphs_of_decode_steps_remain_if_those_of_mixed_steps_fail(module, fault, monkeypatch):
    capturer = ChangingCapturer(wrong_in_mixed_steps)
    if fault == "cannot be captured":
        capturer = RerunCapturer()
        step_of = GraphedModel._step

        def failing(self, shape):
            if not shape.is_decode and shape.tokens == 16:
                raise RuntimeError("operation not permitted\nand more")
            return step_of(self, shape)

        monkeypatch.setattr(GraphedModel, "_step", failing)
    lines = []
    expected, _ = reference_greedy(module, [5, 6], 3)
    engine = graphed_engine(module, capturer, lines, max_num_seqs=8)
    assert lines[1].startswith("running steps with prompts without CUDA graphs: ")
    assert lines[2].startswith("captured 4 CUDA graphs in ")
    assert all(shape.is_decode for shape in engine.model._graphs)
    steps = Steps(engine)
    assert generate_all(engine, [[5, 6]], greedy(3))[0].token_ids == expected
    assert [s is None for s in steps.shapes] == [True, False, False]


def test_padding_that_changes_mixed_steps_is_found(module):
    engine = make_engine(module, DeviceLengths(), max_num_seqs=8)
    forward = engine.model.forward

    def padding_disturbs(batch):
        logits = forward(batch)
        is_padded = batch.num_tokens > batch.num_seqs and (batch.context_lens == 0).any()
        return logits + torch.linspace(0, 1, logits.shape[1]) if is_padded else logits

    engine.model.forward = padding_disturbs
    lines = []
    GraphedModel(engine.model, CPU).capture(RerunCapturer(), lines.append)
    assert "padded mixed steps give logits that are off by" in lines[1]
    assert lines[2].startswith("captured 4 CUDA graphs in ")


@pytest.mark.parametrize("num_blocks", [1, *nightly(2, 5)])
def test_mixed_graphs_are_checked_in_the_smallest_kv_cache(num_blocks):
    lines = []
    engine = graphed_engine(
        tiny_model("qwen3_moe"), RerunCapturer(), lines, num_blocks=num_blocks, max_num_seqs=9
    )
    assert lines[-1].endswith("and checked them")
    assert len(engine.model._graphs) == 5 + 3


def test_steps_of_the_check_have_every_kind_of_sequence():
    sequences = parity_sequences(model_info(num_blocks=64))
    for shape in mixed_shapes(256, 8192):
        step = mixed_step(sequences, shape)
        assert shape.fits(step)
        starts = step.query_start_list
        lengths = [b - a for a, b in pairwise(starts)]
        assert lengths[0] == 1
        assert max(lengths) > 2
        assert len(step.logits_index) >= step.num_seqs
        assert step.num_tokens == shape.tokens or step.num_seqs == shape.seqs
