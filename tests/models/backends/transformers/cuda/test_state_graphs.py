"""Decode steps of models with recurrent states in CUDA graphs; a rerun of the step stands for one.

Prompts run without a graph.
"""

import random
from functools import cache

import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.cuda.parity_steps import last_tokens, parity_sequences
from stonechat_models.backends.transformers.cuda.static_buffers import StaticBuffers
from tests.models.backends.transformers.cuda.test_graphs import RerunCapturer, graphed_engine
from tests.models.device_lengths import DeviceLengths
from tests.models.engine.test_overlap import (
    LIMITS,
    answers_of,
    assert_same,
    run_workload,
    workload,
)
from tests.models.engines import (
    CPU,
    add,
    generate_all,
    greedy,
    make_engine,
    reference_greedy,
    run,
)
from tests.models.launches import WAITS, counted_launches
from tests.models.tiny_models import RECURRENT_FAMILIES, WHOLE_PROMPT_FAMILIES, tiny_model
from tests.nightly import nightly

FAMILIES = ["qwen3_5_text", "lfm2", "granitemoehybrid", "mamba2"]
MORE_FAMILIES = sorted({*RECURRENT_FAMILIES, *WHOLE_PROMPT_FAMILIES} - {*FAMILIES})
COPIES_TO_THE_DEVICE = {"lift_fresh"}
"""What PyTorch runs for `torch.tensor(numbers)`."""


@pytest.mark.parametrize("family", [*FAMILIES, *nightly(*MORE_FAMILIES)])
def test_tokens_are_those_of_plain_transformers(family):
    module = tiny_model(family)
    prompts = [[5], [*range(3, 33)], [9, 8, 7, 6]]
    expected = [reference_greedy(module, prompt, 6) for prompt in prompts]
    capturer, lines = RerunCapturer(), []
    engine = graphed_engine(module, capturer, lines, max_num_seqs=3)
    assert lines[-1].startswith("captured 3 CUDA graphs ")
    num_checked = capturer.num_replays
    results = generate_all(engine, prompts, greedy(6))
    assert capturer.num_replays >= num_checked + 5
    for result, (token_ids, logprobs) in zip(results, expected, strict=True):
        assert result.token_ids == token_ids
        for row, entry in zip(logprobs, result.logprobs, strict=True):
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-3)


@pytest.fixture(scope="module")
def answers():
    return cache(lambda family: answers_of(tiny_model(family)))


@pytest.mark.parametrize("limits", LIMITS, ids=["roomy", "tight", "uncached"])
@pytest.mark.parametrize("family", ["lfm2", *nightly("qwen3_5_text", "mamba2")])
def test_graphs_change_no_answer_under_any_load(answers, family, limits):
    """Choices of one request, snapshots of prefixes, preemption and overlap all take part."""
    module = tiny_model(family)
    requests, expected = list(workload(random.Random(0), 14)), answers(family)(0, 14)
    capturer = RerunCapturer()
    engine = graphed_engine(module, capturer, overlap=True, **limits)
    num_checked = capturer.num_replays
    assert_same(run_workload(engine, requests), expected)
    assert capturer.num_replays > num_checked + 10
    if limits["num_blocks"] == 12 and engine.model.info.kv_bytes_per_token:
        assert engine.stats().num_preemptions > 0


@pytest.mark.parametrize("family", [*FAMILIES, *nightly(*MORE_FAMILIES)])
@torch.inference_mode()
def test_a_decode_step_neither_waits_nor_copies_from_the_host(family, monkeypatch):
    """A CUDA graph can contain neither. All sequences decode in one call."""
    model = make_engine(tiny_model(family), DeviceLengths(), max_num_seqs=4).model
    model.forward(parity_sequences(model.info))
    shape = GraphedModel(model, CPU)._decode_shapes[-1]
    buffers = StaticBuffers.allocate([shape], 32, 0, 1, CPU, model.info.num_state_slots)
    buffers.fill(last_tokens(parity_sequences(model.info), 3), shape)

    def attend(self, query, kv, *_):
        return query.new_zeros(*query.shape[:2], kv.values.shape[2])

    monkeypatch.setattr(DeviceLengths, "attend", attend)
    with counted_launches(monkeypatch) as launches:
        model.forward(buffers.view(shape, 4))
    assert not launches.keys() & (WAITS | COPIES_TO_THE_DEVICE), launches
    assert launches["embedding"] == 1


def test_what_decodes_beside_a_prompt_replays_a_graph():
    module = tiny_model("lfm2")
    expected = [reference_greedy(module, prompt, 5)[0] for prompt in ([5, 6, 7], [8, 9])]
    capturer = RerunCapturer()
    engine = graphed_engine(module, capturer, max_num_seqs=2)
    add(engine, "0", [5, 6, 7], greedy(5))
    for _ in range(2):  # the prompt, and one token
        engine.step()
    num_before = capturer.num_replays
    add(engine, "1", [8, 9], greedy(5))
    first = engine.step()
    assert {output.request_id for output in first} == {"0", "1"}
    assert capturer.num_replays == num_before + 1
    tokens = {"0": [], "1": []}
    results = run(engine)
    for output in first:
        tokens[output.request_id] += output.token_ids
    for (request_id, _), result in results.items():
        tokens[request_id] += result.token_ids
    assert tokens == {"0": expected[0][-len(tokens["0"]) :], "1": expected[1]}


def test_a_prompt_of_one_token_begins_with_an_empty_state():
    """It looks like a decode step. The slot has the state of the sequence before."""
    module = tiny_model("qwen3_5_text")
    expected, _ = reference_greedy(module, [7], 4)
    engine = graphed_engine(module, RerunCapturer(), max_num_seqs=1)
    for _ in range(2):
        assert generate_all(engine, [[7]], greedy(4))[0].token_ids == expected


class ForgetfulCapturer(RerunCapturer):
    """Its replays give the right logits, and leave the states as they were."""

    def __init__(self, states):
        super().__init__()
        self.states = states

    def capture(self, step):
        replay = super().capture(step)

        def forgetful():
            before = self.states.read(4)
            output = replay()
            self.states.write(before, 4)
            return output

        return forgetful


def test_graphs_that_leave_other_states_are_not_used():
    engine = make_engine(tiny_model("lfm2"), DeviceLengths(), max_num_seqs=4)
    lines = []
    model = GraphedModel(engine.model, CPU)
    model.capture(ForgetfulCapturer(engine.model._states), lines.append)
    assert lines[-1].startswith("running without CUDA graphs: a graph leaves recurrent states")
    assert model._graphs == {}
