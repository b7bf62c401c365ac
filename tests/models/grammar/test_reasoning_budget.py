"""Reasoning comes before the grammar, stays within its budget and takes nothing of the answer."""

import random

import numpy as np
import pytest

from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_models.sampling.state import TokenConstraint
from stonechat_models.types import GrammarSpec, ReasoningSpec
from tests.models.byte_vocabulary import ByteVocabulary

VOCAB = 320
DIGIT = GrammarSpec("regex", "[0-9]")
SPLIT_END = "</reasoned>"
"""A marker that this vocabulary splits into several tokens."""


@pytest.fixture(scope="module")
def vocabulary() -> ByteVocabulary:
    return ByteVocabulary()


@pytest.fixture(scope="module")
def compiler(vocabulary: ByteVocabulary) -> GrammarCompiler:
    return GrammarCompiler(vocabulary, VOCAB)


def allowed_ids(constraint: TokenConstraint) -> list[int] | None:
    row = np.zeros(VOCAB // 32, dtype=np.int32)
    if not constraint.fill_bitmask(row):
        return None
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    return [int(i) for i in np.nonzero(bits)[0]]


def feed(constraint: TokenConstraint, vocabulary: ByteVocabulary, text: str) -> None:
    for token_id in vocabulary.encode(text):
        allowed = allowed_ids(constraint)
        assert allowed is None or token_id in allowed
        constraint.accept(token_id)


def reasoning(
    end: str = "</think>", starts_open: bool = True, budget: int | None = None
) -> ReasoningSpec:
    return ReasoningSpec(start="<think>", end=end, starts_open=starts_open, budget=budget)


@pytest.mark.parametrize("end", ["</think>", SPLIT_END])
def test_the_grammar_starts_after_the_reasoning(
    end: str, compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    constraint = compiler.compile(DIGIT, reasoning(end)).new_constraint()
    feed(constraint, vocabulary, f"Free text, </th and 7 {end}\n\n")
    assert allowed_ids(constraint) == [ord(c) for c in "0123456789"]
    feed(constraint, vocabulary, "7")
    assert constraint.is_finished


def test_reasoning_is_optional_where_the_prompt_does_not_open_it(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    compiled = compiler.compile(DIGIT, reasoning(starts_open=False))
    direct, thinking = compiled.new_constraint(), compiled.new_constraint()
    feed(direct, vocabulary, "3")
    assert direct.is_finished
    feed(thinking, vocabulary, "<think>x</think>3")
    assert thinking.is_finished


def test_the_end_of_the_answer_cannot_come_inside_the_reasoning(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    constraint = compiler.compile(DIGIT, reasoning()).new_constraint()
    allowed = allowed_ids(constraint)
    assert allowed is not None
    assert not set(allowed) & set(vocabulary.special_ids)
    assert len(allowed) == vocabulary.vocab_size - len(vocabulary.special_ids)


def test_an_answer_that_may_be_empty_may_end_inside_the_reasoning(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    """So a model that writes its call there can stop, and writes it with its own tokens."""
    free = GrammarSpec("regex", "(call)?")
    constraint = compiler.compile(free, reasoning(SPLIT_END)).new_constraint()
    allowed = allowed_ids(constraint)
    assert allowed is not None
    assert set(vocabulary.special_ids) < set(allowed)
    feed(constraint, vocabulary, SPLIT_END[:-1])
    assert vocabulary.id_of(b">{") not in (allowed_ids(constraint) or ())
    feed(constraint, vocabulary, ">call")
    assert constraint.is_finished


def test_no_token_ends_the_marker_and_begins_the_answer(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    constraint = compiler.compile(DIGIT, reasoning(SPLIT_END)).new_constraint()
    overlong = vocabulary.id_of(b">{")
    assert overlong in (allowed_ids(constraint) or ())
    feed(constraint, vocabulary, SPLIT_END[:-1])
    allowed = allowed_ids(constraint)
    assert allowed is not None
    assert overlong not in allowed
    assert ord(">") in allowed


@pytest.mark.parametrize("end", ["</think>", SPLIT_END])
@pytest.mark.parametrize("budget", [0, 1, 5])
@pytest.mark.parametrize("grammar", [DIGIT, None])
def test_the_budget_forces_the_end(
    grammar: GrammarSpec | None,
    budget: int,
    end: str,
    compiler: GrammarCompiler,
    vocabulary: ByteVocabulary,
) -> None:
    constraint = compiler.compile(grammar, reasoning(end, budget=budget)).new_constraint()
    rng = random.Random(budget)
    end_ids = vocabulary.encode(end)
    for _ in range(budget):
        allowed = allowed_ids(constraint)
        assert allowed is not None
        constraint.accept(rng.choice([i for i in allowed if i not in end_ids]))
    for token_id in end_ids:
        assert allowed_ids(constraint) == [token_id]
        constraint.accept(token_id)
    next_ids = allowed_ids(constraint)
    if grammar is None:
        assert next_ids is None
    else:
        digits = {ord(c) for c in "0123456789"}
        assert set(next_ids or ()) == digits | {ord("\n"), vocabulary.id_of(b"\n\n")}


def test_without_grammar_and_budget_nothing_is_masked(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    constraint = compiler.compile(None, reasoning(starts_open=False)).new_constraint()
    for token_id in vocabulary.encode("\n<think>a</think>\nanswer"):
        assert allowed_ids(constraint) is None
        constraint.accept(token_id)
    assert not constraint.is_finished
