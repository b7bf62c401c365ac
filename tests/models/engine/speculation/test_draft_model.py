"""A draft model: what it proposes, what it keeps, and that it never changes an answer."""

import random

import pytest

from stonechat_models.engine.speculation.draft_model import MAX_GAP
from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_models.types import GrammarSpec, ReasoningSpec, SamplingParams
from tests.models.byte_vocabulary import ByteVocabulary
from tests.models.engine.prompts.test_lookup import Script
from tests.models.engine.speculation.test_draft_control import Clock, cheap, dear
from tests.models.engine.test_overlap import (
    LIMITS,
    ONE_LAYER,
    assert_same,
    run_workload,
    workload,
)
from tests.models.engines import add, generate_all, make_engine, run
from tests.models.tiny_models import tiny_model
from tests.nightly import nightly

PLAIN = {"temperature": 0.0}


@pytest.fixture(scope="module")
def other():
    """A model that mostly drafts wrong tokens."""
    return tiny_model("qwen2", **ONE_LAYER)


def drafting_engine(module, draft_module, cost=cheap, **changes):
    """An engine whose clock only the served model moves: drafting is free."""
    clock = Clock(cost)
    engine = make_engine(module, draft_module=draft_module, clock=clock, **changes)
    clock.drive(engine.model)
    return engine


def share_accepted(engine):
    stats = engine.stats()
    assert stats.num_drafted_tokens == stats.num_model_drafted_tokens
    assert stats.num_accepted_draft_tokens == stats.num_accepted_model_draft_tokens
    return stats.num_accepted_draft_tokens / stats.num_drafted_tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_drafts_for_itself_is_always_right(module, temperature):
    """Its draws have the variates of their positions, so they are right with sampling too."""
    params = SamplingParams(temperature=temperature, seed=5, max_tokens=60)
    prompts = [[5, 6, 7], [8, 9]]
    expected = generate_all(make_engine(module), prompts, params)
    engine = drafting_engine(module, module)
    results = generate_all(engine, prompts, params)
    assert [r.token_ids for r in results] == [r.token_ids for r in expected]
    assert share_accepted(engine) > 0.98
    assert engine.stats().num_steps < 25


@pytest.mark.parametrize("limits", LIMITS, ids=["roomy", "tight", "uncached"])
@pytest.mark.parametrize("is_same", [*nightly(True), False], ids=["same", "other"])
def test_a_draft_model_changes_no_answer(module, other, answers, limits, is_same):
    """Over preemptions, aborts, choices, prompts in parts, stop tokens, penalties and scores."""
    requests, expected = list(workload(random.Random(5), 16)), answers(5, 16)
    engine = drafting_engine(module, module if is_same else other, **limits)
    assert_same(run_workload(engine, requests), expected)
    assert engine.stats().num_model_drafted_tokens > 0


def test_a_draft_model_works_beside_drafts_from_the_context(module, other, answers):
    requests, expected = list(workload(random.Random(7), 10)), answers(7, 10)
    for lookup in ("auto", "on"):
        engine = drafting_engine(module, other, prompt_lookup=lookup)
        assert_same(run_workload(engine, requests), expected)


def test_drafts_respect_a_grammar(module):
    """A draft token that the grammar forbids is never proposed, so a wish for it costs nothing."""
    tokens = [*range(20, 60)]
    engine = drafting_engine(module, module)
    add(engine, "r", [5, 6, 7], SamplingParams(n=2), [Script(tokens), Script(tokens)])
    results = run(engine)
    assert results["r", 0].token_ids == results["r", 1].token_ids == tokens
    assert share_accepted(engine) == 1.0


def test_drafts_end_with_the_grammar_and_inside_reasoning():
    vocabulary = ByteVocabulary()
    module = tiny_model("llama", vocab_size=288, **ONE_LAYER)
    compiler = GrammarCompiler(vocabulary, 288)
    spec = GrammarSpec("regex", '\\{"[a-e]{12}": "[a-e]{9}"\\}')
    reasoning = ReasoningSpec(start="<think>", end="</think>", starts_open=True, budget=5)
    bias = dict.fromkeys(vocabulary.encode("</think>"), 9.0)
    params = SamplingParams(seed=3, n=3, max_tokens=60, logit_bias=bias)

    def generate(engine):
        compiled = compiler.compile(spec, reasoning)
        constraints = [compiled.new_constraint() for _ in range(params.n)]
        add(engine, "r", [97, 98, 99], params, constraints)
        return [(r.token_ids, r.finish_reason) for _, r in sorted(run(engine).items())]

    expected = generate(make_engine(module, vocab_size=288))
    engine = drafting_engine(module, module, vocab_size=288)
    assert generate(engine) == expected
    assert share_accepted(engine) > 0.95


def test_nothing_is_drafted_behind_the_end(module):
    engine = drafting_engine(module, module, eos=frozenset({9}), num_draft_tokens=8)
    add(engine, "r", [5, 6, 7], SamplingParams(max_tokens=60, logit_bias={9: 100.0}))
    assert run(engine)["r", 0].token_ids == [9]
    params = SamplingParams(max_tokens=60, min_tokens=12, seed=1, logit_bias={9: 100.0})
    add(engine, "s", [5, 6, 7], params)
    assert len(run(engine)["s", 0].token_ids) == 13
    assert share_accepted(engine) == 1.0


# --- where it pays ---


def test_a_bad_draft_model_is_left_alone(module, other):
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=100)
    clock = Clock(cheap)
    engine = make_engine(module, draft_module=other, clock=clock)
    clock.drive(engine.model)
    clock.drive(engine.speculation.model.model, lambda num_tokens: 0.2)
    generate_all(engine, [[5, 6, 7]], params)
    assert 0 < engine.stats().num_drafted_tokens < 30
    assert clock.now < 1.06 * 103 * cheap(1)
    generate_all(engine, [[5, 6, 7]], params)  # what was learned holds for the next request
    assert clock.now < 1.04 * 206 * cheap(1)


def test_where_rows_are_dear_nothing_is_drafted(module):
    params = SamplingParams(temperature=0.0, max_tokens=100)
    clock = Clock(dear)
    engine = make_engine(module, draft_module=module, clock=clock)
    clock.drive(engine.model)
    clock.drive(engine.speculation.model.model, lambda num_tokens: 0.3)
    generate_all(engine, [[5, 6, 7]], params)
    assert engine.stats().num_drafted_tokens < 10
    assert clock.now < 1.04 * 103


def test_the_time_of_the_draft_model_counts(module):
    """One that takes as long as the model that it drafts for is of no use."""
    clock = Clock(cheap)
    engine = make_engine(module, draft_module=module, clock=clock)
    clock.drive(engine.model)
    clock.drive(engine.speculation.model.model)
    started = clock.now
    generate_all(engine, [[5, 6, 7]], SamplingParams(temperature=0.0, max_tokens=100))
    assert clock.now - started < 110 * cheap(1)


def test_a_long_prompt_is_caught_up_with_only_once_the_answer_is_long(module):
    clock = Clock(cheap)
    engine = make_engine(module, draft_module=module, clock=clock, max_model_len=512)
    clock.drive(engine.model)
    clock.drive(engine.speculation.model.model, lambda num_tokens: 0.1 * num_tokens)
    params = SamplingParams(temperature=0.0, max_tokens=8)
    generate_all(engine, [[5, 6, 7]], params)  # what a token costs is known now
    started, num_drafted = clock.now, engine.stats().num_drafted_tokens
    generate_all(engine, [[7] * 200], params)
    assert engine.stats().num_drafted_tokens == num_drafted
    assert clock.now - started < 8 * cheap(1) + 16 * cheap(20)
    generate_all(engine, [[8] * 200], SamplingParams(temperature=0.0, max_tokens=300))
    assert engine.stats().num_drafted_tokens > num_drafted + 50


# --- what it keeps ---


def count_tokens(engine):
    """Record how many tokens each pass of the draft model computes."""
    counts, forward = [], engine.speculation.model.model.forward

    def counted(batch):
        counts.append(batch.num_tokens)
        return forward(batch)

    engine.speculation.model.model.forward = counted
    return counts


def test_each_token_is_computed_once(module):
    engine = drafting_engine(module, module)
    counts = count_tokens(engine)
    prompt = [3 + i % 50 for i in range(40)]
    result = generate_all(engine, [prompt], SamplingParams(**PLAIN, max_tokens=60))[0]
    num_known = len(prompt) + len(result.token_ids)
    assert num_known - 8 <= sum(counts) <= num_known
    assert max(counts[1:]) <= MAX_GAP


def test_a_prompt_that_was_computed_is_found_again(module):
    engine = drafting_engine(module, module, num_blocks=256)
    prompt = [3 + i % 50 for i in range(60)]
    params = SamplingParams(**PLAIN, max_tokens=30)
    expected = generate_all(engine, [prompt], params)[0].token_ids
    counts = count_tokens(engine)
    again = generate_all(engine, [prompt], params)[0]
    assert again.num_cached_tokens > 0
    assert again.token_ids == expected
    assert sum(counts) < 40
    assert share_accepted(engine) > 0.95


def test_choices_share_what_is_computed_of_their_prompt(module):
    engine = drafting_engine(module, module)
    counts = count_tokens(engine)
    add(engine, "r", [3 + i % 50 for i in range(60)], SamplingParams(seed=1, n=3, max_tokens=30))
    results = run(engine)
    assert len(results) == 3
    assert sum(counts) < 60 + 3 * 36
    assert share_accepted(engine) > 0.95


def test_blocks_that_others_used_meanwhile_are_computed_again(module):
    """The cache holds little, so that blocks change hands. What the draft model has in them must
    never be taken for something else: it would draft wrong tokens."""
    engine = drafting_engine(module, module, num_blocks=40)
    params = SamplingParams(**PLAIN, max_tokens=30)
    prompts = [[3 + (i * k) % 60 for i in range(40)] for k in (1, 3, 7)]
    for i in (0, 1, 0, 2, 1, 0, 2):
        generate_all(engine, [prompts[i]], params)
    assert share_accepted(engine) > 0.97


# --- limits and faults ---


def test_a_fault_of_the_draft_model_ends_drafting_only(module, caplog):
    params = SamplingParams(**PLAIN, max_tokens=60)
    expected = generate_all(make_engine(module), [[5, 6, 7], [8, 9]], params)
    engine = drafting_engine(module, module)
    counts = count_tokens(engine)
    forward = engine.speculation.model.model.forward

    def failing(batch):
        if len(counts) == 12:
            raise RuntimeError("the draft model is out of order")
        return forward(batch)

    engine.speculation.model.model.forward = failing
    results = generate_all(engine, [[5, 6, 7], [8, 9]], params)
    assert [r.token_ids for r in results] == [r.token_ids for r in expected]
    assert engine.stats().num_failed_steps == 0
    assert engine.speculation.model.is_broken
    assert "the draft model failed" in caplog.text
    assert len(counts) == 12


def test_a_vocabulary_of_fewer_rows_drafts_what_it_has(module):
    """Logits of the draft model may be narrower or wider: models pad their rows differently."""
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=60)
    expected = generate_all(make_engine(module), [[5, 6, 7]], params)[0].token_ids
    for vocab_size in (64, 400):
        draft_module = tiny_model("qwen2", vocab_size=vocab_size, **ONE_LAYER)
        engine = drafting_engine(module, draft_module)
        assert generate_all(engine, [[5, 6, 7]], params)[0].token_ids == expected
        assert not engine.speculation.model.is_broken


def test_no_draft_beyond_the_context_of_the_draft_model(module):
    engine = drafting_engine(module, module)
    info = engine.speculation.model.model.info
    engine.speculation.model.model.info = type(info)(
        **{n: getattr(info, n) for n in info.__slots__} | {"max_model_len": 40}
    )
    counts = count_tokens(engine)
    generate_all(engine, [[5, 6, 7]], SamplingParams(**PLAIN, max_tokens=100))
    assert sum(counts) <= 40
    assert not engine.speculation.model.is_broken
