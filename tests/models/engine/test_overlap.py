"""Overlap gives the same answers as running in order, also under preemption, aborts and faults."""

import random
import weakref
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from stonechat_models.types import FinishReason, SamplingParams
from tests.models.engines import add, make_engine, run
from tests.models.tiny_models import VOCAB_SIZE, tiny_model
from tests.nightly import nightly

ONE_LAYER = {"num_hidden_layers": 1}
SMALL = {
    "llama": ONE_LAYER,
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "bloom": {"n_layer": 1},
}
"""A model with a paged cache, one with recurrent states too, and one with its own cache."""


@pytest.fixture(scope="module")
def module():
    return tiny_model("llama", **ONE_LAYER)


@pytest.fixture(scope="module", params=SMALL)
def any_case(request):
    """A model of each kind, and its `answers_of`."""
    model = tiny_model(request.param, **SMALL[request.param])
    return model, answers_of(model)


class Recorder:
    """Wraps a model and a sampler. It records the calls to them, and may make one fail."""

    def __init__(self, engine, chance=0.0, seed=0):
        self.model, self.sampler = engine.model, engine.sampler
        self.events: list[str] = []
        self._chance, self._rng = chance, random.Random(seed)
        engine.model, engine.sampler = self, self

    def __getattr__(self, name):
        return getattr(self.model, name)

    def forward(self, batch):
        self.note("forward")
        return self.model.forward(batch)

    def launch(self, logits, states):
        self.note("sample")
        return RecordedSampling(self, self.sampler.launch(logits, states))

    def score(self, *arguments):
        return self.sampler.score(*arguments)

    def note(self, event):
        self.events.append(event)
        if self._rng.random() < self._chance:
            raise RuntimeError(f"failed in {event}")


@dataclass
class RecordedSampling:
    recorder: Recorder
    sampling: object

    @property
    def tokens(self):
        return self.sampling.tokens

    def read(self):
        self.recorder.note("read")
        return self.sampling.read()


def params(**changes):
    return SamplingParams(**{"max_tokens": 6, "seed": 3, "top_logprobs": 2, **changes})


def test_the_next_step_is_launched_before_the_previous_tokens_are_read(module):
    engine = make_engine(module, overlap=True)
    recorder = Recorder(engine)
    add(engine, "r", [5, 6, 7], params(max_tokens=4))
    result = run(engine)["r", 0]
    assert len(result.token_ids) == 4
    assert recorder.events == [
        "forward",
        *("sample", "forward", "read") * 3,
        *("sample", "read"),
    ]


def test_nothing_is_computed_past_the_last_possible_token(module):
    engine = make_engine(module, overlap=True)
    recorder = Recorder(engine)
    add(engine, "r", [5, 6, 7], params(max_tokens=1))
    run(engine)
    assert recorder.events.count("forward") == 1


def test_finished_steps_are_not_kept_alive(module):
    """Each item depends on the one before. A long answer must not keep all of them alive."""
    engine = make_engine(module, overlap=True)
    add(engine, "r", [5, 6, 7], params(max_tokens=60))
    for _ in range(40):
        engine.step()
    (sequence,) = engine.scheduler.running
    item, num_items = sequence.in_flight[-1], 0
    while item is not None:
        item, num_items = item.depends_on, num_items + 1
    assert num_items <= 3


def test_only_one_steps_logits_are_kept_alive(module):
    engine = make_engine(module, overlap=True)
    forward, logits_refs = engine.model.forward, []

    def recording_forward(batch):
        logits = forward(batch)
        logits_refs.append(weakref.ref(logits))
        return logits

    engine.model.forward = recording_forward
    add(engine, "r", [5, 6, 7], params())
    for _ in range(4):
        engine.step()
    assert [ref() is not None for ref in logits_refs] == [False, False, False, True]


def test_a_step_whose_sequences_have_all_ended_is_dropped(module):
    engine = make_engine(module, overlap=True)
    add(engine, "first", [5, 6, 7], params(max_tokens=9))
    tokens = run(engine)["first", 0].token_ids
    add(engine, "stopped", [5, 6, 7], params(max_tokens=9, stop_token_ids=(tokens[2],)))
    result = run(engine)["stopped", 0]
    assert result.token_ids == tokens[: tokens.index(tokens[2]) + 1]
    add(engine, "next", [5, 6, 7], params(max_tokens=9))
    assert run(engine)["next", 0].token_ids == tokens
    assert engine.stats().num_used_blocks == 0


class NoRepeats:
    """A constraint that allows no token twice, and ends after `length` tokens."""

    def __init__(self, length):
        self.length, self.token_ids = length, []

    def fill_bitmask(self, row):
        row.fill(-1)
        for token in self.token_ids:
            row[token // 32] &= ~(1 << (token % 32)) if token % 32 < 31 else 0x7FFFFFFF
        return True

    def accept(self, token_id):
        assert token_id not in self.token_ids
        self.token_ids.append(token_id)

    def fork(self):
        fork = NoRepeats(self.length)
        fork.token_ids = [*self.token_ids]
        return fork

    @property
    def is_finished(self):
        return len(self.token_ids) == self.length


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_an_idle_engine_keeps_nothing_in_flight(module, num_steps):
    engine = make_engine(module, overlap=True)
    add(engine, "r", [5, 6, 7], params(), [NoRepeats(9)])
    for _ in range(num_steps):
        engine.step()
    constraint = weakref.ref(engine.scheduler.running[0].sampling.constraint)
    engine.abort("r")
    assert not engine.has_work
    assert constraint() is None


def workload(rng, num_requests):
    """Yield requests of every kind, as (step, id, prompt, params, lengths of the constraints)."""
    for i in range(num_requests):
        n = rng.choice([1, 1, 1, 2, 3])
        prompt = [rng.choice([1, 2]) for _ in range(rng.randint(1, 24))]
        settings = SamplingParams(
            n=n,
            seed=i,
            max_tokens=rng.choice([1, 2, 9, 17, 23]) if i % 7 != 5 else 0,
            prompt_logprobs=(None, 3, None, 0, None)[i % 5],
            temperature=rng.choice([0.0, 1.0, 1.5]),
            top_p=rng.choice([1.0, 0.8]),
            frequency_penalty=rng.choice([0.0, 0.7]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            min_tokens=rng.choice([0, 4]),
            stop_token_ids=tuple(range(rng.choice([0, 0, 20]))),
            top_logprobs=rng.choice([None, 3]),
        )
        lengths = [rng.randint(1, 15) for _ in range(n)] if rng.random() < 0.3 else []
        yield rng.randint(0, 12), f"r{i}", prompt, settings, lengths


def run_workload(engine, requests, aborts=(), predictions=None):
    """Run all requests; return (tokens, logprobs, finish reason) by (request id, choice).

    The log-probabilities of a prompt have the choice -1.
    `aborts` are (step, id), `predictions` are by request id.
    """
    results = {}
    for step in range(3000):
        for start_step, request_id, prompt, settings, lengths in requests:
            if start_step == step:
                constraints = [NoRepeats(n) for n in lengths]
                prediction = (predictions or {}).get(request_id, ())
                add(engine, request_id, prompt, settings, constraints, prediction)
        for abort_step, request_id in aborts:
            if abort_step == step:
                engine.abort(request_id)
        if step > 24 and not engine.has_work:
            break
        for output in engine.step():
            tokens, logprobs, ends = results.setdefault(
                (output.request_id, output.index), ([], [], [])
            )
            tokens.extend(output.token_ids)
            for entry in output.logprobs or ():
                logprobs.extend([entry.logprob, *entry.top_logprobs])
            ends.append(output.finish_reason)
            if output.prompt_logprobs is not None:
                assert (output.request_id, -1) not in results
                prompt = [p for e in output.prompt_logprobs for p in (e.logprob, *e.top_logprobs)]
                results[output.request_id, -1] = ([], prompt, [None])
        engine.scheduler.check_integrity()
    assert not engine.has_work
    assert engine.stats().num_used_blocks == 0
    return {key: (tokens, logprobs, ends[-1]) for key, (tokens, logprobs, ends) in results.items()}


def answers_of(module):
    """Return a function of a workload's seed and size: what an engine with much room answers.

    The answers have to be the same whatever else takes part, so all tests share them.
    """

    @cache
    def answers(seed, num_requests):
        requests = list(workload(random.Random(seed), num_requests))
        return run_workload(make_engine(module, **LIMITS[0]), requests)

    return answers


def assert_same(results, expected):
    """Tokens and finish reasons are equal; logprobs may differ by float32 rounding in a batch."""
    assert results.keys() == expected.keys()
    for key, (tokens, logprobs, end) in results.items():
        assert (tokens, end) == (expected[key][0], expected[key][2]), key
        assert logprobs == pytest.approx(expected[key][1], abs=1e-4), key


LIMITS = [
    {"num_blocks": 256, "max_batch_tokens": 64},
    {"num_blocks": 12, "max_batch_tokens": 16, "max_model_len": 48},
    {"num_blocks": 12, "max_batch_tokens": 7, "max_model_len": 48, "prefix_caching": False},
]


@pytest.mark.parametrize(
    "limits", [LIMITS[1], *nightly(LIMITS[0], LIMITS[2])], ids=["tight", "roomy", "uncached"]
)
@pytest.mark.parametrize("seed", [0, *nightly(1, 4)])
def test_overlap_changes_no_answer_under_any_load(any_case, limits, seed):
    any_module, answers = any_case
    number = 14 if limits is LIMITS[1] else 18  # some need more for a preemption
    requests, expected = list(workload(random.Random(seed), number)), answers(seed, number)
    engine = make_engine(any_module, overlap=True, **limits)
    engine.scheduler.prompt_rows.max_rows = 5
    assert_same(run_workload(engine, requests), expected)
    wanted = [s for _, _, _, s, _ in requests if s.prompt_logprobs is not None]
    assert len(expected) == sum(s.n for _, _, _, s, _ in requests) + len(wanted)
    if limits["num_blocks"] == 12:
        assert engine.stats().num_preemptions > 0


@pytest.mark.parametrize("seed", [0, *nightly(1, 2)])
def test_aborts_change_no_other_answer(any_case, seed):
    any_module, answers = any_case
    rng = random.Random(seed)
    requests, expected = list(workload(rng, 14)), answers(seed, 14)
    aborts = [(step + rng.randint(0, 12), name) for step, name, *_ in requests[::3]]
    aborted_ids = {name for _, name in aborts}
    engine = make_engine(any_module, overlap=True, **LIMITS[1])
    results = run_workload(engine, requests, aborts)
    others = {key: value for key, value in results.items() if key[0] not in aborted_ids}
    assert_same(
        others, {key: value for key, value in expected.items() if key[0] not in aborted_ids}
    )


@pytest.mark.parametrize("seed", [0, *nightly(1, 2, 3, 4, 5)])
def test_a_transient_fault_anywhere_changes_no_answer(any_case, seed):
    """Forward, sampling and reading fail at random. The step runs again, and nothing is lost."""
    any_module, answers = any_case
    requests, expected = list(workload(random.Random(seed), 14)), dict(answers(seed, 14))
    engine = make_engine(any_module, overlap=True, **LIMITS[0])
    recorder = Recorder(engine, chance=0.03, seed=seed)
    results = run_workload(engine, requests)
    assert engine.stats().num_failed_steps > 0
    failed_keys = [key for key, value in results.items() if value[2] is FinishReason.ERROR]
    assert len(failed_keys) < len(results)  # a request that is alone in a failing step ends
    for key in failed_keys:
        tokens, _, _ = results.pop(key)
        assert tokens == expected[key][0][: len(tokens)]
    assert_same(results, {key: expected[key] for key in results})
    assert {"forward", "sample", "read"} <= set(recorder.events)


def test_tokens_that_only_the_device_knows_reach_the_next_step(module):
    """The host's copy of a token is wrong until it is read. Nothing may use it earlier."""
    expected = run_workload(make_engine(module), list(workload(random.Random(9), 10)))
    engine = make_engine(module, overlap=True)
    launch = engine.sampler.launch

    class LateSampling:
        def __init__(self, sampling):
            self._sampling, self._sampled = sampling, None
            self.tokens = sampling.tokens.clone()
            sampling.tokens.fill_(VOCAB_SIZE - 1)  # a host copy may hold anything at first

        def read(self):
            self._sampling.tokens.copy_(self.tokens)
            return self._sampling.read()

    engine.sampler.launch = lambda logits, states: LateSampling(launch(logits, states))
    assert_same(run_workload(engine, list(workload(random.Random(9), 10))), expected)


@torch.inference_mode()
def test_placeholders_are_filled_with_the_sampled_tokens():
    from stonechat_models.engine.batch import build_batch
    from stonechat_models.engine.scheduler import Scheduler
    from tests.models.engine.test_scheduler import make_request

    scheduler = Scheduler(num_blocks=64, block_size=4, max_batch_tokens=9, max_num_seqs=8)
    for i, length in enumerate([3, 4, 7]):
        scheduler.add(make_request(f"r{i}", [10 + i] * length, 1, 5))
    first = scheduler.schedule().scheduled
    assert [(item.num_tokens, item.reaches_end) for item in first] == [
        (3, True),
        (4, True),
        (2, False),
    ]
    first[0].row, first[1].row = 1, 0
    second = scheduler.schedule().scheduled
    sampled_ids = torch.tensor([51, 50])
    batch = build_batch(second, 4, torch.device("cpu"), sampled_ids)
    assert batch.token_ids.tolist() == [50, 51, 12, 12, 12, 12, 12]
    assert batch.positions.tolist() == [3, 4, 2, 3, 4, 5, 6]
    assert batch.logits_index.tolist() == [0, 1, 6]


def test_an_equal_number_of_tokens_does_not_mean_the_same_sequences():
    from stonechat_models.engine.batch import build_batch
    from stonechat_models.engine.scheduler import Scheduler
    from tests.models.engine.test_scheduler import make_request

    scheduler = Scheduler(num_blocks=64, block_size=4, max_batch_tokens=64, max_num_seqs=8)
    for i, max_tokens in enumerate([5, 1]):
        scheduler.add(make_request(f"r{i}", [10 + i] * 3, 1, max_tokens))
    for row, item in enumerate(scheduler.schedule().scheduled):
        item.row = row
    scheduler.add(make_request("r2", [12], 1, 5))
    second = scheduler.schedule().scheduled
    batch = build_batch(second, 4, torch.device("cpu"), torch.tensor([50, 51]))
    assert batch.token_ids.tolist() == [50, 12]
