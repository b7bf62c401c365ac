"""How many tokens are drafted follows from what they bring and what they cost.

Time is counted by a clock of the test, which the model's forward pass moves.
"""

import random

import pytest

from stonechat_models.engine.prompts.lookup import MAX_DRAFT, AdaptiveDrafter, PastFollower
from stonechat_models.engine.speculation.speculation import Speculation
from stonechat_models.types import SamplingParams
from tests.models.engine.test_overlap import (
    LIMITS,
    assert_same,
    run_workload,
    workload,
)
from tests.models.engines import add, make_engine, model_info, run
from tests.nightly import nightly


class Clock:
    """Seconds that pass only in the model: what `cost` says of a step's tokens."""

    def __init__(self, cost):
        self.now = 0.0
        self.cost = cost

    def __call__(self):
        return self.now

    def drive(self, model, cost=None):
        """Let the model's passes take this time, or that of the clock's own `cost`."""
        forward = model.forward

        def timed(batch):
            self.now += (cost or self.cost)(batch.num_tokens)
            return forward(batch)

        model.forward = timed


def cheap(num_tokens):
    """A step that reads weights: more tokens take hardly longer."""
    return 1.0 + 0.02 * num_tokens


def dear(num_tokens):
    """A step that is bound by arithmetic."""
    return float(num_tokens)


def timed_engine(module, cost, prompt_lookup="auto", **changes):
    clock = Clock(cost)
    engine = make_engine(module, prompt_lookup=prompt_lookup, clock=clock, **changes)
    clock.drive(engine.model)
    return engine, clock


def generate(engine, clock, num_requests=1, num_tokens=80, **params):
    """Run requests whose answers repeat one token (`bias`) or do not. Return tokens, seconds."""
    started = clock.now
    for i in range(num_requests):
        sampling = SamplingParams(seed=i, max_tokens=num_tokens, **params)
        add(engine, f"{started}-{i}", [5 + i, 6, 7], sampling)
    results = run(engine)
    return [r.token_ids for _, r in sorted(results.items())], clock.now - started


REPEATS = {"temperature": 0.0, "logit_bias": {9: 100.0}}
RANDOM = {"temperature": 1.0}


def test_a_text_that_repeats_is_drafted_where_rows_are_cheap(module):
    plain, plain_seconds = generate(*timed_engine(module, cheap, "off"), **REPEATS)
    engine, clock = timed_engine(module, cheap)
    generate(engine, clock, **REPEATS)
    tokens, seconds = generate(engine, clock, **REPEATS)
    assert tokens == plain
    assert seconds < plain_seconds / 4


def test_a_text_that_repeats_is_not_drafted_where_rows_are_dear(module):
    engine, clock = timed_engine(module, dear)
    generate(engine, clock, **REPEATS)
    _, seconds = generate(engine, clock, **REPEATS)
    assert seconds < 1.05 * (80 + 3)


@pytest.mark.parametrize("cost", [cheap, dear], ids=["cheap", "dear"])
@pytest.mark.parametrize("num_requests", [4, *nightly(1)])
def test_a_text_that_does_not_repeat_takes_no_longer(module, cost, num_requests):
    plain, expected = generate(*timed_engine(module, cost, "off"), num_requests, **RANDOM)
    tokens, seconds = generate(*timed_engine(module, cost), num_requests, **RANDOM)
    assert tokens == plain
    assert seconds <= 1.02 * expected


def test_no_draft_before_steps_without_one_are_measured(module):
    engine, _ = timed_engine(module, cheap)
    add(engine, "r", [9] * 12, SamplingParams(max_tokens=40, **REPEATS))
    for _ in range(3):  # the prompt, then two steps
        engine.step()
    assert engine.stats().num_drafted_tokens == 0
    engine.step()
    assert engine.stats().num_drafted_tokens > 0


def test_nothing_is_drafted_beside_a_prompt(module):
    engine, _ = timed_engine(module, cheap, max_batch_tokens=8)
    add(engine, "r", [9] * 12, SamplingParams(max_tokens=60, **REPEATS))
    for _ in range(6):
        engine.step()
    before = engine.stats().num_drafted_tokens
    assert before > 0
    add(engine, "long", list(range(10, 40)), SamplingParams(max_tokens=1))
    for _ in range(4):
        engine.step()
    assert engine.stats().num_drafted_tokens == before


@pytest.mark.parametrize("limits", LIMITS, ids=["roomy", "tight", "uncached"])
@pytest.mark.parametrize("cost", [cheap, *nightly(dear)], ids=["cheap", "dear"])
def test_answers_do_not_depend_on_what_is_drafted(module, answers, limits, cost):
    requests, expected = list(workload(random.Random(6), 14)), answers(6, 14)
    engine, _ = timed_engine(module, cost, **limits)
    assert_same(run_workload(engine, requests), expected)


# --- the lengths of drafts ---


class Item:
    def __init__(self, rate=None, draft=()):
        self.num_tokens, self.reaches_end, self.num_again, self.draft = 1, True, 0, draft
        self.drafter = self.draft_state = None
        if rate is not None:
            self.drafter = AdaptiveDrafter(PastFollower([5] * 40), 100)
            self.drafter.rate = rate


def lengths(rates, cost, max_tokens=128):
    """How many tokens sequences with these rates draft once steps of this cost were measured."""
    speculation = Speculation(model_info(max_batch_tokens=2 * max_tokens), "auto")
    num_seqs = len(rates)
    for num_drafts in (0, *range(1, 9), 12, 16, 24, 32, 48, 64, 0):
        for _ in range(30):
            items = [Item(draft=(1,) * num_drafts), *(Item() for _ in range(num_seqs - 1))]
            speculation.finish(items, cost(num_seqs + num_drafts))
    sequences = [Item(rate) for rate in rates]
    speculation.plan(sequences, is_alone=True)
    return [len(s.drafter.draft(99)) if s.drafter else 0 for s in sequences]


def test_the_length_follows_the_acceptance_rate():
    assert lengths([0.02], cheap) == [0]
    short, long = lengths([0.5], cheap), lengths([0.9], cheap)
    assert 1 <= short[0] < long[0]
    assert lengths([1.0], cheap) == [MAX_DRAFT]
    assert lengths([0.9], dear) == [0]


def test_the_length_is_the_best_one():
    """Compare with all lengths, for a cost that rises in steps as that of tiled kernels does."""

    def tiled(num_tokens):
        return 1.0 + 0.4 * ((num_tokens - 1) // 4)

    for rate in (0.3, 0.5, 0.7, 0.8, 0.95):
        speeds = {
            k: sum(rate**j for j in range(k + 1)) / tiled(1 + k) for k in range(MAX_DRAFT + 1)
        }
        best = max(speeds.values())
        assert speeds[lengths([rate], tiled)[0]] > 0.93 * best


def test_a_sequence_that_repeats_is_not_served_at_the_cost_of_many_others():
    rates = [0.9] + [None] * 15
    assert lengths(rates, lambda rows: 16.0 + 1.5 * (rows - 16))[0] <= 1
    assert min(lengths([0.9] * 16, lambda rows: 16.0 + 0.3 * (rows - 16))) >= 2


def test_the_tokens_of_a_step_are_bounded():
    assert sum(lengths([0.99] * 8, cheap, max_tokens=20)) == 20


def test_the_rate_is_counted_where_nothing_is_drafted():
    token_ids = [1, 2, 3, 4, 1, 2, 3]
    drafter = AdaptiveDrafter(PastFollower(token_ids), 100)
    first = drafter.rate
    for token in (4, 1, 2, 3, 4):
        token_ids.append(token)
        drafter.follow(token)
    rate = drafter.rate
    assert rate > first + 0.2
    token_ids.append(50)
    drafter.follow(50)
    assert drafter.rate < rate
    assert drafter.draft(9) == ()
