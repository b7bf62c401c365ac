"""Reasoning is separated in the same way wherever the text is cut into pieces."""

import pytest

from stonechat_server.parsers.deltas import ContentDelta, ContentParser, ReasoningDelta
from stonechat_server.parsers.reasoning import (
    KNOWN_MARKERS,
    ReasoningMarkers,
    ReasoningParser,
    find_markers,
)

THINK = ReasoningMarkers("<think>", "</think>")


def read(pieces: list[str], starts_open: bool) -> tuple[str, str]:
    parser = ReasoningParser(THINK, starts_open, ContentParser())
    reasoning = content = ""
    for position, piece in enumerate(pieces):
        for delta in parser.feed(piece, finished=position == len(pieces) - 1):
            if isinstance(delta, ReasoningDelta):
                assert not content
                reasoning += delta.text
            else:
                assert isinstance(delta, ContentDelta)
                content += delta.text
    return reasoning, content


@pytest.mark.parametrize(
    ("text", "starts_open", "reasoning", "content"),
    [
        ("<think>\nLet me see.\n</think>\n\nYes <b>.", False, "Let me see.", "Yes <b>."),
        ("Hm </th, so\n\n</think>\n7\n", True, "Hm </th, so", "7\n"),
        ("\n<think>again</think>x", True, "again", "x"),
        ("<think></think>x", False, "", "x"),
        ("  no reasoning </think>", False, "", "  no reasoning </think>"),
        ("<thin", False, "", "<thin"),
        ("never ends </thi", True, "never ends </thi", ""),
        ("", True, "", ""),
        ("a</think>b</think>c", True, "a", "b</think>c"),
        ("</think>Hello", False, "", "Hello"),
        ("\n</think>\nHello", True, "", "Hello"),
    ],
)
def test_every_split(text: str, starts_open: bool, reasoning: str, content: str) -> None:
    assert read([text], starts_open) == (reasoning, content)
    assert read([*text, ""], starts_open) == (reasoning, content)
    for first in range(len(text) + 1):
        assert read([text[:first], text[first:]], starts_open) == (reasoning, content)


def test_the_marker_tokens_decide_what_counts_as_reasoning() -> None:
    parser = ReasoningParser(THINK, starts_open=False, inner=ContentParser())
    states = []
    for piece in ("<think>", "a", "b", "</think>", "c"):
        states.append(parser.in_reasoning)
        parser.feed(piece, finished=False)
    assert states == [False, True, True, True, False]


def test_markers_are_found_in_the_template_or_the_vocabulary() -> None:
    assert find_markers("{{ '</think>' }}", lambda _: False) == THINK
    assert find_markers("", {"[THINK]", "[/THINK]"}.__contains__) == ReasoningMarkers(
        "[THINK]", "[/THINK]"
    )
    assert find_markers("", lambda _: False) is None


GEMMA = next(markers for markers in KNOWN_MARKERS if markers.end == "<channel|>")


def read_all(parser: ReasoningParser, pieces: list[str]) -> tuple[str, str]:
    texts = {ReasoningDelta: "", ContentDelta: ""}
    for position, piece in enumerate(pieces):
        for delta in parser.feed(piece, finished=position == len(pieces) - 1):
            assert isinstance(delta, ReasoningDelta | ContentDelta)
            texts[type(delta)] += delta.text
    return texts[ReasoningDelta], texts[ContentDelta]


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<|channel>thought\nHm\n<channel|>Hello", "Hm", "Hello"),
        ("<|channel>thought<channel|>Hello", "", "Hello"),
        ("Hello<channel|>", "", "Hello"),
        ("<channel|>Hello", "", "Hello"),
        ("Hello<|channel>thought\n<channel|>", "", "Hello"),
        ("Hello<|channel>thought\n<channel|><channel|>", "", "Hello"),
        ("<|channel><|channel>thought\n<channel|>Hello", "", "Hello"),
        ("<|channel>thought\nA<channel|>x<|channel>thought\nB<channel|>y", "A\n\nB", "xy"),
        ("a <b> <|chan", "", "a <b> <|chan"),
    ],
)
def test_reasoning_may_return_and_stray_marks_are_removed(
    text: str, reasoning: str, content: str
) -> None:
    for pieces in ([text], [*text, ""]):
        parser = ReasoningParser(GEMMA, False, ContentParser())
        assert read_all(parser, pieces) == (reasoning, content)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("Hm\n<call>x", "Hm", "<call>x"),
        ("Hm <call>x</call> so\n</think>y", "Hm <call>x</call> so", "y"),
        ("<ca", "<ca", ""),
    ],
)
def test_a_call_ends_reasoning_that_has_no_end(text: str, reasoning: str, content: str) -> None:
    for pieces in ([text], [*text, ""]):
        parser = ReasoningParser(THINK, True, ContentParser(), triggers=("<call>",))
        assert read_all(parser, pieces) == (reasoning, content)


def test_an_opening_mark_of_the_answer_comes_without_reasoning() -> None:
    text = "<|START_RESPONSE|>Hello"
    for pieces in ([text], [*text, ""]):
        parser = ReasoningParser(THINK, True, ContentParser(), openings=("<|START_RESPONSE|>",))
        assert read_all(parser, pieces) == ("", text)


def test_markers_are_found_by_what_shows_them() -> None:
    found = find_markers("{%- set e = '</think{}>'.format(':opensource') %}", lambda text: False)
    assert found is not None
    assert found.end == "</think:opensource>"
    apriel = find_markers("[BEGIN FINAL RESPONSE]", lambda text: False)
    assert apriel is not None
    assert apriel.start == "Here are my reasoning steps:"
