"""Steps launched before the tokens of the last one are read: the same answers, in any weather."""

import random
import weakref
from dataclasses import dataclass

import pytest
import torch

from stonechat_models.types import FinishReason, SamplingParams
from tests.models.engines import add, make_engine, run
from tests.models.tiny_models import VOCAB_SIZE, tiny_model


@pytest.fixture(scope="module")
def module():
    return tiny_model("llama")


class Recorder:
    """Stands before a model and a sampler; notes what is asked of them, and may fail there."""

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
        return Watched(self, self.sampler.launch(logits, states))

    def note(self, event):
        self.events.append(event)
        if self._rng.random() < self._chance:
            raise RuntimeError(f"failed in {event}")


@dataclass
class Watched:
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


def test_the_next_step_is_launched_before_the_tokens_of_one_are_read(module):
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


def test_nothing_is_computed_past_the_last_token_that_may_come(module):
    engine = make_engine(module, overlap=True)
    recorder = Recorder(engine)
    add(engine, "r", [5, 6, 7], params(max_tokens=1))
    run(engine)
    assert recorder.events.count("forward") == 1


def test_steps_that_are_over_are_not_kept(module):
    """Each builds on the one before it: a long answer must not hold all of them."""
    engine = make_engine(module, overlap=True)
    add(engine, "r", [5, 6, 7], params(max_tokens=60))
    for _ in range(40):
        engine.step()
    (sequence,) = engine.scheduler.running
    item, num_kept = sequence.in_flight[-1], 0
    while item is not None:
        item, num_kept = item.depends_on, num_kept + 1
    assert num_kept <= 3


def test_the_logits_of_one_step_alone_are_kept(module):
    engine = make_engine(module, overlap=True)
    forward, kept = engine.model.forward, []

    def watched(batch):
        logits = forward(batch)
        kept.append(weakref.ref(logits))
        return logits

    engine.model.forward = watched
    add(engine, "r", [5, 6, 7], params())
    for _ in range(4):
        engine.step()
    assert [ref() is not None for ref in kept] == [False, False, False, True]


def test_a_step_whose_sequences_have_all_ended_is_dropped(module):
    engine = make_engine(module, overlap=True)
    add(engine, "first", [5, 6, 7], params(max_tokens=9))
    tokens = run(engine)["first", 0].token_ids
    add(engine, "stopped", [5, 6, 7], params(max_tokens=9, stop_token_ids=(tokens[2],)))
    stopped = run(engine)["stopped", 0]
    assert stopped.token_ids == tokens[: tokens.index(tokens[2]) + 1]
    add(engine, "next", [5, 6, 7], params(max_tokens=9))
    assert run(engine)["next", 0].token_ids == tokens
    assert engine.stats().num_used_blocks == 0


class NoRepeats:
    """A constraint that depends on what was chosen: no token twice; ends after `length`."""

    def __init__(self, length):
        self.length, self.seen = length, []

    def fill_bitmask(self, row):
        row.fill_(-1)
        for token in self.seen:
            row[token // 32] &= ~(1 << (token % 32)) if token % 32 < 31 else 0x7FFFFFFF
        return True

    def accept(self, token_id):
        assert token_id not in self.seen
        self.seen.append(token_id)

    def fork(self):
        forked = NoRepeats(self.length)
        forked.seen = [*self.seen]
        return forked

    @property
    def is_finished(self):
        return len(self.seen) == self.length


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_an_idle_engine_keeps_nothing_of_what_was_under_way(module, num_steps):
    engine = make_engine(module, overlap=True)
    add(engine, "r", [5, 6, 7], params(), [NoRepeats(9)])
    for _ in range(num_steps):
        engine.step()
    constraint = weakref.ref(engine.scheduler.running[0].sampling.constraint)
    engine.abort("r")
    assert not engine.has_work
    assert constraint() is None


def workload(rng, num_requests):
    """Requests of every kind, as (when, id, prompt, params, lengths of their constraints)."""
    for i in range(num_requests):
        n = rng.choice([1, 1, 1, 2, 3])
        prompt = [rng.choice([1, 2]) for _ in range(rng.randint(1, 24))]
        settings = SamplingParams(
            n=n,
            seed=i,
            max_tokens=rng.choice([1, 2, 9, 17, 23]),
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
    """What each choice got, logprobs included; `aborts` are (when, id), `predictions` by id."""
    results = {}
    for step in range(3000):
        for when, request_id, prompt, settings, lengths in requests:
            if when == step:
                constraints = [NoRepeats(n) for n in lengths]
                prediction = (predictions or {}).get(request_id, ())
                add(engine, request_id, prompt, settings, constraints, prediction)
        for when, request_id in aborts:
            if when == step:
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
        engine.scheduler.check_integrity()
    assert not engine.has_work
    assert engine.stats().num_used_blocks == 0
    return {key: (tokens, logprobs, ends[-1]) for key, (tokens, logprobs, ends) in results.items()}


def assert_same(results, expected):
    """Tokens and ends equal, logprobs within what another batch may change of a float32."""
    assert results.keys() == expected.keys()
    for key, (tokens, logprobs, end) in results.items():
        assert (tokens, end) == (expected[key][0], expected[key][2]), key
        assert logprobs == pytest.approx(expected[key][1], abs=1e-4), key


LIMITS = [
    {"num_blocks": 256, "max_batch_tokens": 64},
    {"num_blocks": 12, "max_batch_tokens": 16, "max_model_len": 48},
    {"num_blocks": 12, "max_batch_tokens": 7, "max_model_len": 48, "prefix_caching": False},
]


@pytest.mark.parametrize("limits", LIMITS, ids=["roomy", "tight", "uncached"])
@pytest.mark.parametrize("seed", [0, 1, 4])
def test_any_load_gets_what_it_gets_in_order(module, limits, seed):
    requests = list(workload(random.Random(seed), 14))
    expected = run_workload(make_engine(module, **limits), requests)
    engine = make_engine(module, overlap=True, **limits)
    assert_same(run_workload(engine, requests), expected)
    assert len(expected) == sum(settings.n for _, _, _, settings, _ in requests)
    if limits["num_blocks"] == 12:
        assert engine.stats().num_preemptions > 0


@pytest.mark.parametrize("seed", range(3))
def test_aborts_disturb_nobody_else(module, seed):
    rng = random.Random(seed)
    requests = list(workload(rng, 14))
    expected = run_workload(make_engine(module, **LIMITS[1]), requests)
    aborts = [(when + rng.randint(0, 12), name) for when, name, *_ in requests[::3]]
    gone = {name for _, name in aborts}
    engine = make_engine(module, overlap=True, **LIMITS[1])
    results = run_workload(engine, requests, aborts)
    kept = {key: value for key, value in results.items() if key[0] not in gone}
    assert_same(kept, {key: value for key, value in expected.items() if key[0] not in gone})


@pytest.mark.parametrize("seed", range(6))
def test_a_passing_fault_anywhere_changes_no_answer(module, seed):
    """Forward, sampling and reading fail now and then; each is run again and nothing is lost."""
    requests = list(workload(random.Random(seed), 14))
    expected = run_workload(make_engine(module, **LIMITS[0]), requests)
    engine = make_engine(module, overlap=True, **LIMITS[0])
    recorder = Recorder(engine, chance=0.03, seed=seed)
    results = run_workload(engine, requests)
    assert engine.stats().num_failed_steps > 0
    failed = [key for key, value in results.items() if value[2] is FinishReason.ERROR]
    assert len(failed) < len(results)  # a request alone in a step that fails twice ends
    for key in failed:
        tokens, _, _ = results.pop(key)
        assert tokens == expected[key][0][: len(tokens)]
    assert_same(results, {key: expected[key] for key in results})
    assert {"forward", "sample", "read"} <= set(recorder.events)


def test_tokens_that_only_the_device_knows_reach_the_next_step(module):
    """The host's copy of a token is wrong until it is read: nothing may depend on it earlier."""
    expected = run_workload(make_engine(module), list(workload(random.Random(9), 10)))
    engine = make_engine(module, overlap=True)
    launch = engine.sampler.launch

    class Late:
        def __init__(self, sampling):
            self._sampling, self._sampled = sampling, None
            self.tokens = sampling.tokens.clone()
            sampling.tokens.fill_(VOCAB_SIZE - 1)  # what a copy that is not there yet may hold

        def read(self):
            self._sampling.tokens.copy_(self.tokens)
            return self._sampling.read()

    engine.sampler.launch = lambda logits, states: Late(launch(logits, states))
    assert_same(run_workload(engine, list(workload(random.Random(9), 10))), expected)


@torch.inference_mode()
def test_promised_tokens_are_put_where_they_belong():
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
    promised = torch.tensor([51, 50])
    batch = build_batch(second, 4, torch.device("cpu"), promised)
    assert batch.token_ids.tolist() == [50, 51, 12, 12, 12, 12, 12]
    assert batch.positions.tolist() == [3, 4, 2, 3, 4, 5, 6]
    assert batch.logits_index.tolist() == [0, 1, 6]


def test_a_step_of_as_many_tokens_as_were_promised_is_not_taken_for_the_same_sequences():
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
