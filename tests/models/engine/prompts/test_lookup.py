"""Speculative decoding: where draft tokens come from, and that they never change an answer."""

import random
from collections import Counter

import numpy as np
import pytest

from stonechat_models.engine.prompts.lookup import (
    MAX_DRAFT,
    PAST_KEYS,
    Drafter,
    PastFollower,
    PositionIndex,
    TextFollower,
)
from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_models.types import GrammarSpec, ReasoningSpec, SamplingParams
from tests.models.byte_vocabulary import ByteVocabulary
from tests.models.engine.test_overlap import (
    LIMITS,
    ONE_LAYER,
    Recorder,
    assert_same,
    run_workload,
    workload,
)
from tests.models.engines import add, generate_all, make_engine, run
from tests.models.tiny_models import tiny_model
from tests.nightly import nightly


def follow(follower, tokens):
    for token in tokens:
        follower.follow(token)
    return follower


# --- a sequence's position in a text ---


def test_a_prediction_is_followed_from_its_start():
    follower = TextFollower([1, 2, 3, 4, 5])
    assert follower.next_tokens(3) == [1, 2, 3]
    assert follow(follower, [1, 2]).next_tokens(9) == [3, 4, 5]
    assert follow(follower, [3, 4, 5]).next_tokens(9) == []
    assert follower.matched == {0, 1, 2, 3, 4}


def test_after_a_mismatch_nothing_is_drafted_until_the_text_matches_again():
    follower = follow(TextFollower([1, 2, 3, 4, 5, 6, 7]), [1, 2, 99])
    assert follower.next_tokens(9) == []
    assert follow(follower, [4]).next_tokens(9) == []
    assert follow(follower, [5]).next_tokens(9) == [6, 7]
    assert follow(follower, [6]).matched == {0, 1, 5}


def test_a_later_match_is_preferred_to_an_earlier_one():
    text = [8, 9, 1, 8, 9, 2, 8, 9, 3]
    follower = follow(TextFollower(text), [8, 9, 1, 77, 8, 9])
    assert follower.next_tokens(1) == [2]
    assert follow(follower, [77, 8, 9]).next_tokens(1) == [3]
    assert follow(follower, [77, 8, 9]).next_tokens(1) == [3]


def test_the_past_is_followed_from_its_latest_match():
    token_ids = [1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 1, 2]
    follower = PastFollower(token_ids)
    assert follower.next_tokens(4) == []
    token_ids.append(3)
    follower.follow(3)
    assert follower.next_tokens(3) == [6, 7, 1]
    for token in (6, 7):
        token_ids.append(token)
        follower.follow(token)
    assert follower.next_tokens(9)[:2] == [1, 2]


def test_a_prompt_that_repeats_itself_is_followed_at_once():
    assert PastFollower([4, 5, 6, 7, 4, 5, 6]).next_tokens(3) == [7, 4, 5]


def test_a_draft_goes_on_behind_the_end_of_the_text():
    assert PastFollower([4, 5, 6, 7, 4, 5, 6]).next_tokens(10) == [7, 4, 5, 6, 7, 4, 5, 6, 7, 4]
    assert PastFollower([9] * 5).next_tokens(3) == [9, 9, 9]


def test_choices_share_the_index_of_their_prompt():
    prompt = [1, 2, 3, 4, 5, 6]
    texts = [[*prompt], [*prompt]]
    index = PositionIndex(prompt, PAST_KEYS)
    first, second = [PastFollower(t, PositionIndex(t, PAST_KEYS, index)) for t in texts]
    for token in (3, 4, 5):
        texts[0].append(token)
        first.follow(token)
    assert first.next_tokens(2) == [6, 3]
    assert second.next_tokens(2) == []
    for token in (9, 1, 2, 3, 8, 1, 2, 3):
        texts[1].append(token)
        second.follow(token)
    assert second.next_tokens(2) == [8, 1]  # the latest match, behind the prompt


def test_drafts_grow_after_success_and_shrink_after_failure():
    drafter = Drafter(TextFollower(list(range(1000))), 1000)
    lengths = []
    for num_wrong in (0, 0, 0, 15, 0):
        draft = drafter.draft(100)
        lengths.append(len(draft))
        drafter.judge(len(draft), len(draft) - num_wrong)
    assert lengths == [4, 8, 16, MAX_DRAFT, 1]
    assert drafter.draft(0) == ()


def test_a_long_text_is_indexed_in_parts_after_a_mismatch():
    text = list(range(100_000))
    first, second = TextFollower.for_choices(text, 2)
    num_searches = 0
    while first.next_tokens(2) != [90_002, 90_003]:
        follow(first, [90_000, 90_001])
        num_searches += 1
    assert 10 < num_searches < 30
    assert follow(second, [90_000, 90_001]).next_tokens(2) == [90_002, 90_003]
    assert second.matched == set()


def test_a_text_of_equal_tokens_is_matched_one_position_after_another():
    follower = TextFollower([7] * 20)
    for position in range(2, 20):
        assert follow(follower, [1, 7, 7]).has_match
        assert len(follower.next_tokens(99)) == 20 - position


def test_tokens_outside_the_vocabulary_are_not_drafted():
    assert Drafter(TextFollower([1, 2, 50, 3]), 50).draft(9) == (1, 2)


# --- drafts change no answer ---


def altered(rng, token_ids):
    """Yield `token_ids` with some tokens missing and some new ones in between."""
    for token in token_ids:
        chance = rng.random()
        if chance < 0.1:
            yield 77
        if chance < 0.85:
            yield token


@pytest.mark.parametrize("overlap", [True, *nightly(False)], ids=["overlap", "in-order"])
@pytest.mark.parametrize("limits", LIMITS, ids=["roomy", "tight", "uncached"])
def test_predictions_change_no_answer(module, answers, limits, overlap):
    rng = random.Random(5)
    requests, expected = list(workload(rng, 20)), answers(5, 20)
    predictions = {
        name: list(altered(rng, tokens)) for (name, index), (tokens, _, _) in expected.items()
    }
    engine = make_engine(module, overlap=overlap, **limits)
    assert_same(run_workload(engine, requests, predictions=predictions), expected)
    stats = engine.stats()
    assert stats.num_accepted_draft_tokens > 10
    assert stats.num_drafted_tokens > stats.num_accepted_draft_tokens
    assert stats.num_generated_tokens >= sum(len(tokens) for tokens, _, _ in expected.values())


@pytest.mark.parametrize("overlap", [False, True], ids=["in-order", "overlap"])
def test_drafts_from_the_context_change_no_answer(module, answers, overlap):
    requests, expected = list(workload(random.Random(6), 14)), answers(6, 14)
    engine = make_engine(module, overlap=overlap, prompt_lookup="on", **LIMITS[1])
    assert_same(run_workload(engine, requests), expected)
    assert engine.stats().num_drafted_tokens > 0


@pytest.mark.parametrize("seed", [0, 1, *nightly(2)])
def test_faults_while_drafting_lose_nothing(module, answers, seed):
    requests, expected = list(workload(random.Random(seed), 14)), answers(seed, 14)
    predictions = {name: tokens for (name, _), (tokens, _, _) in expected.items()}
    engine = make_engine(module, overlap=seed > 0)
    Recorder(engine, chance=0.03, seed=seed)
    results = run_workload(engine, requests, predictions=predictions)
    assert engine.stats().num_failed_steps > 0
    failed_keys = [key for key, value in results.items() if value[2] == "error"]
    assert len(failed_keys) < len(results) / 2
    assert_same(
        {key: value for key, value in results.items() if key not in failed_keys},
        {key: value for key, value in expected.items() if key not in failed_keys},
    )


@pytest.mark.parametrize("overlap", [False, True], ids=["in-order", "overlap"])
@pytest.mark.parametrize("budget", [None, 5], ids=["free", "budget"])
def test_drafts_respect_grammars_and_reasoning(overlap, budget):
    """Real matchers are forked per draft token. They allow, forbid or force tokens, or end."""
    vocabulary = ByteVocabulary()
    vocab_size = 288
    module = tiny_model("llama", vocab_size=vocab_size, **ONE_LAYER)
    compiler = GrammarCompiler(vocabulary, vocab_size)
    spec = GrammarSpec("regex", '\\{"[a-e]{12}": "[a-e]{9}"\\}')
    reasoning = ReasoningSpec(start="<think>", end="</think>", starts_open=True, budget=budget)
    bias = dict.fromkeys(vocabulary.encode("</think>"), 9.0)
    params = SamplingParams(seed=3, n=3, max_tokens=60, logit_bias=bias)

    def generate(prediction=(), **changes):
        engine = make_engine(module, vocab_size=vocab_size, **changes)
        compiled = compiler.compile(spec, reasoning)
        constraints = [compiled.new_constraint() for _ in range(params.n)]
        add(engine, "r", [97, 98, 99], params, constraints, prediction)
        results = run(engine)
        choices = [results["r", index] for index in range(params.n)]
        return [(c.token_ids, c.finish_reason) for c in choices], engine.stats()

    expected, _ = generate()
    assert all(reason == "stop" for _, reason in expected)
    mixed_prediction = [*expected[0][0][:-3], 120, *expected[1][0]]
    results, stats = generate(mixed_prediction, overlap=overlap)
    assert results == expected
    assert 10 < stats.num_accepted_draft_tokens < stats.num_drafted_tokens


def num_predicted(engine):
    """Step to the end. Return the number of predicted tokens per choice."""
    counts = Counter()
    while engine.has_work:
        for output in engine.step():
            assert output.num_predicted <= len(output.token_ids)
            counts[output.index] += output.num_predicted
    return counts


class Script:
    """A constraint that allows one sequence of tokens only."""

    def __init__(self, token_ids):
        self.token_ids = list(token_ids)

    def fill_bitmask(self, row):
        token_id = self.token_ids[0]
        row[token_id // 32] = np.uint32(1 << token_id % 32).astype(np.int32).item()
        return True

    def accept(self, token_id):
        assert token_id == self.token_ids.pop(0)

    def fork(self):
        return Script(self.token_ids)

    @property
    def is_finished(self):
        return not self.token_ids


@pytest.mark.parametrize("overlap", [False, True], ids=["in-order", "overlap"])
@pytest.mark.parametrize(
    ("prediction", "tokens", "expected"),
    [
        (range(20, 40), range(20, 40), 20),
        (range(20, 40), range(50, 60), 0),
        # After a mismatch two tokens find the position again, and the ones after them count.
        ([*range(20, 28), 99, 99, *range(29, 33), 22], range(20, 40), 8 + 2),
        # A token of the prediction counts once.
        ([20, 21, 22, 23], [20, 21, 22, 20, 21, 22, 23], 4),
    ],
)
def test_tokens_that_repeat_the_prediction_are_counted(
    module, overlap, prediction, tokens, expected
):
    engine = make_engine(module, overlap=overlap)
    scripts = [Script(tokens), Script([70, 71])]
    add(engine, "r", [5, 6, 7], SamplingParams(n=2), scripts, tuple(prediction))
    assert num_predicted(engine) == {0: expected, 1: 0}


def test_without_a_prediction_no_token_is_predicted(module):
    """A draft from the sequence's own past is no prediction."""
    engine = make_engine(module, prompt_lookup="on")
    params = SamplingParams(temperature=0.0, max_tokens=40, logit_bias={9: 100.0})
    add(engine, "r", [9] * 8, params)
    assert num_predicted(engine) == {0: 0}
    assert engine.stats().num_accepted_draft_tokens > 10


def test_a_right_prediction_takes_few_steps(module):
    params = SamplingParams(seed=1, max_tokens=60, temperature=1.0)
    engine = make_engine(module)
    add(engine, "plain", [5, 6, 7], params)
    tokens = run(engine)["plain", 0].token_ids
    num_steps = engine.stats().num_steps
    add(engine, "predicted", [5, 6, 7], params, prediction=tokens)
    assert run(engine)["predicted", 0].token_ids == tokens
    assert num_steps == 60
    assert engine.stats().num_steps - num_steps <= 8


def test_a_prediction_of_unknown_tokens_does_no_harm(module):
    engine = make_engine(module)
    add(engine, "r", [5, 6, 7], SamplingParams(seed=1, max_tokens=9), prediction=[10**6] * 20)
    assert len(run(engine)["r", 0].token_ids) == 9
    assert engine.stats().num_failed_steps == 0


@pytest.mark.parametrize("overlap", [False, True], ids=["in-order", "overlap"])
def test_a_wrong_prediction_takes_no_more_steps(module, overlap):
    params = SamplingParams(seed=1, max_tokens=30, temperature=1.0)
    engine = make_engine(module, overlap=overlap)
    add(engine, "r", [5, 6, 7], params, prediction=[200] * 40)
    run(engine)
    assert engine.stats().num_steps <= 30 + 4 * overlap


def test_steps_overlap_when_too_many_sequences_run_to_draft(module):
    params = SamplingParams(seed=1, max_tokens=30, temperature=1.0)
    tokens = generate_all(make_engine(module), [[5, 6, 7]], params)[0].token_ids
    engine = make_engine(module, overlap=True, max_batch_tokens=20)
    for i in range(6):
        add(engine, str(i), [5, 6, 7], params, prediction=tokens)
    results = run(engine)
    assert all(results[str(i), 0].token_ids == tokens for i in range(6))
    assert engine.stats().num_drafted_tokens == 0
    assert engine.stats().num_steps <= 34


def test_drafts_leave_room_for_waiting_requests(module):
    params = SamplingParams(seed=1, max_tokens=60, temperature=1.0)
    tokens = generate_all(make_engine(module), [[5, 6, 7]], params)[0].token_ids
    engine = make_engine(module, max_batch_tokens=8)
    add(engine, "predicted", [5, 6, 7], params, prediction=tokens)
    for _ in range(4):
        engine.step()
    assert engine.stats().num_accepted_draft_tokens > 0
    add(engine, "next", [9], params)
    engine.step()
    assert engine.stats().num_waiting == 0
