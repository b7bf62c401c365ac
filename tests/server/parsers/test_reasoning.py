"""Reasoning is separated in the same way wherever the text is cut into pieces."""

import pytest

from stonechat_server.parsers.deltas import ContentDelta, ContentParser, ReasoningDelta
from stonechat_server.parsers.reasoning import ReasoningMarkers, ReasoningParser, find_markers

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
