"""Marks around an answer's text are removed, wherever the text is cut into pieces."""

import pytest

from stonechat_server.parsers.answer_marks import (
    KNOWN_MARKS,
    AnswerMarks,
    AnswerMarksParser,
    find_answer_marks,
)
from stonechat_server.parsers.deltas import ContentDelta, ContentParser

MARKS = {marks.shown_by: marks for marks in KNOWN_MARKS}
COHERE = MARKS["<|START_RESPONSE|>"]
GRANITE = MARKS["<response></response>"]
KIMI = MARKS["open_tag('response')"]
SOLAR = MARKS["<|content|>"]


def read(marks: AnswerMarks, pieces: list[str]) -> str:
    parser = AnswerMarksParser(marks, ContentParser())
    text = ""
    for position, piece in enumerate(pieces):
        for delta in parser.feed(piece, finished=position == len(pieces) - 1):
            assert isinstance(delta, ContentDelta)
            text += delta.text
    return text


@pytest.mark.parametrize(
    ("marks", "text", "content"),
    [
        (GRANITE, "<response>Hello</response>", "Hello"),
        (GRANITE, "\n<response>\nHello\n\nyou\n</response>\n", "Hello\n\nyou\n"),
        (GRANITE, "Hello <response>x</response>", "Hello <response>x</response>"),
        (GRANITE, "<resp", "<resp"),
        (GRANITE, "", ""),
        (GRANITE, "<response>a</response><response>b</response>", "ab"),
        (GRANITE, "<response>a</response>\n<response>\nb</response>\n</response>", "ab"),
        (GRANITE, "<response>a</response> <b>", "a <b>"),
        (GRANITE, "<response>a <response></response>", "a <response>"),
        (GRANITE, "<response>Hello\n</respo", "Hello\n</respo"),
        (COHERE, "Hello<|END_RESPONSE|><|END_RESPONSE|>", "Hello"),
        (COHERE, "a<|END_RESPONSE|> <|START_RESPONSE|>b<|END_RESPONSE|>", "ab"),
        (COHERE, "<|START_RESPONSE|>Hello, world!<|END_RESPONSE|>", "Hello, world!"),
        (COHERE, "Hello<|END_RESPONSE|>", "Hello"),
        (COHERE, "a < b <|END_", "a < b <|END_"),
        (COHERE, "<|START_RESPONSE|><|END_RESPONSE|><|START_ACTION|>[]", "<|START_ACTION|>[]"),
        (
            KIMI,
            "<|open|>response<|sep|>Hi, response.<|close|>response<|sep|><|close|>message<|sep|>",
            "Hi, response.",
        ),
        (SOLAR, "<|begin|>assistant<|content|>Hello<|end|>", "Hello"),
        (SOLAR, "<|begin|>assistant<|tool_calls|>", "<|tool_calls|>"),
        (SOLAR, "<|content|>a<|end|><|begin|>assistant<|content|>b<|end|>", "ab"),
        (SOLAR, "<|content|>a<|end|><|begin|>you", "a<|begin|>you"),
    ],
)
def test_every_split(marks: AnswerMarks, text: str, content: str) -> None:
    assert read(marks, [text]) == content
    assert read(marks, [*text, ""]) == content
    for position in range(len(text)):
        assert read(marks, [text[:position], text[position:], ""]) == content


@pytest.mark.parametrize(
    ("marks", "text", "content"),
    [
        (GRANITE, "<resp", ""),
        (GRANITE, "<response>Hello</respo", "Hello"),
        (GRANITE, "<response>a</response><respo", "a"),
        (GRANITE, "<response>a <", "a <"),
        (COHERE, "a < b <|END_", "a < b"),
        (MARKS[">>>all\\n"], "all", "all"),
    ],
)
def test_only_a_mark_that_is_cut_may_be_dropped(
    marks: AnswerMarks, text: str, content: str
) -> None:
    for pieces in ([text], [*text, ""]):
        parser = AnswerMarksParser(marks, ContentParser())
        deltas = [d for piece in pieces[:-1] for d in parser.feed(piece, finished=False)]
        deltas += parser.feed(pieces[-1], finished=True)
        shown = [d.text for d in deltas if isinstance(d, ContentDelta) and not d.may_be_call]
        assert "".join(shown) == content


def test_marks_are_found_in_the_template() -> None:
    assert find_answer_marks("write it between <response></response>") is GRANITE
    assert find_answer_marks("{{ '<response>' ~ result ~ '</response>' }}") is None
    assert find_answer_marks("{{ '<|START_RESPONSE|>' ~ m.content }}") is COHERE
