"""Reasoning is separated in the same way wherever the text is cut into pieces."""

import pytest

from stonechat_server.parsers.deltas import (
    ContentDelta,
    ContentParser,
    ReasoningDelta,
    ToolCallDelta,
)
from stonechat_server.parsers.reasoning import (
    KNOWN_MARKERS,
    ReasoningMarkers,
    ReasoningParser,
    find_markers,
)
from stonechat_server.parsers.tool_calls import ToolCallParser, ToolNames, triggers
from stonechat_server.tool_formats.hermes import HERMES

THINK = ReasoningMarkers("<think>", "</think>")


def read(pieces: list[str], starts_open: bool) -> tuple[str, str]:
    parser = ReasoningParser(THINK, starts_open, ContentParser)
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
        ("<think>a</think><think>b</think>Hi", False, "a\n\nb", "Hi"),
        ("a</think>\n<think>\nb\n</think>\nHi", True, "a\n\nb", "Hi"),
        ("a</think><thin", True, "a", "<thin"),
        ("\n</think>\nHello", True, "", "Hello"),
    ],
)
def test_every_split(text: str, starts_open: bool, reasoning: str, content: str) -> None:
    assert read([text], starts_open) == (reasoning, content)
    assert read([*text, ""], starts_open) == (reasoning, content)
    for first in range(len(text) + 1):
        assert read([text[:first], text[first:]], starts_open) == (reasoning, content)


def test_the_marker_tokens_decide_what_counts_as_reasoning() -> None:
    parser = ReasoningParser(THINK, starts_open=False, new_inner=ContentParser)
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
        parser = ReasoningParser(GEMMA, False, ContentParser)
        assert read_all(parser, pieces) == (reasoning, content)


CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
NAMES = ToolNames(functions=("now",))


def new_call_parser() -> ToolCallParser:
    return ToolCallParser(format=HERMES, names=NAMES)


def read_calls(pieces: list[str]) -> tuple[str, str, list[str | None]]:
    parser = ReasoningParser(THINK, True, new_call_parser, triggers=triggers(HERMES, NAMES))
    reasoning, content, calls = "", "", []
    for position, piece in enumerate(pieces):
        for delta in parser.feed(piece, finished=position == len(pieces) - 1):
            if isinstance(delta, ReasoningDelta):
                reasoning += "" if delta.only_if_cut else delta.text
            elif isinstance(delta, ContentDelta):
                content += delta.text
            elif isinstance(delta, ToolCallDelta) and delta.name:
                calls.append(delta.name)
    assert not parser.is_call_cut
    return reasoning, content, calls


@pytest.mark.parametrize(
    ("text", "reasoning", "content", "calls"),
    [
        (f"Hm\n{CALL}", "Hm", "", ["now"]),
        (f"Hm {CALL}\n{CALL}\n", "Hm", "", ["now", "now"]),
        (f"I use <tool_call> so: {CALL}", "I use <tool_call> so:", "", ["now"]),
        (f"Not {CALL} but\n{CALL}", f"Not {CALL} but", "", ["now"]),
        (f"I could write {CALL} but no. Then", None, "", []),
        ("I could use the <tool_call> tag to call it. But", None, "", []),
        ('I call <tool_call>\n{"name": "now", "arguments": {"a": 1', None, "", []),
        ('I call <tool_call>\n{"name": "no', None, "", []),
        ("I use <tool_call>", None, "", []),
        ("I use <tool_c", None, "", []),
        (f"Hm {CALL} so\n</think>y", f"Hm {CALL} so", "y", []),
        (f"Hm {CALL}</think>{CALL}", f"Hm {CALL}", "", ["now"]),
        ("<tool_call> " * 40 + "x", None, "", []),
    ],
)
def test_only_whole_calls_at_its_end_end_open_reasoning(
    text: str, reasoning: str | None, content: str, calls: list[str]
) -> None:
    expected = (text if reasoning is None else reasoning, content, calls)
    assert read_calls([text]) == expected
    assert read_calls([*text, ""]) == expected
    for end in range(0, len(text), 3):
        assert read_calls([text[:end], text[end:]]) == expected


def test_calls_in_reasoning_that_is_cut_are_reasoning() -> None:
    parser = ReasoningParser(THINK, True, new_call_parser, triggers=("<tool_call>",))
    text = f"I could write {CALL}"
    cut = [*parser.feed(text, finished=False), *parser.feed("", finished=True)]
    assert "".join(delta.text for delta in cut if isinstance(delta, ReasoningDelta)) == text
    assert all(delta.unless_cut for delta in cut if isinstance(delta, ToolCallDelta))


@pytest.mark.parametrize(
    ("text", "may_be_call"),
    [("<thin", True), ("<think>a</think><th", True), ("Hi <th", False), ("< 3", False)],
)
def test_only_a_start_marker_that_is_cut_may_be_dropped(text: str, may_be_call: bool) -> None:
    (*_, last) = ReasoningParser(THINK, False, ContentParser).feed(text, finished=True)
    assert isinstance(last, ContentDelta)
    assert last.may_be_call is may_be_call


def test_reasoning_streams_on_after_a_mention() -> None:
    parser = ReasoningParser(THINK, True, new_call_parser, triggers=("<tool_call>",))
    text = "I use <tool_call> tags. So"
    deltas = [delta for char in text for delta in parser.feed(char, finished=False)]
    assert "".join(d.text for d in deltas if isinstance(d, ReasoningDelta)) == text


def test_an_opening_mark_of_the_answer_comes_without_reasoning() -> None:
    text = "<|START_RESPONSE|>Hello"
    for pieces in ([text], [*text, ""]):
        parser = ReasoningParser(THINK, True, ContentParser, openings=("<|START_RESPONSE|>",))
        assert read_all(parser, pieces) == ("", text)


def test_markers_are_found_by_what_shows_them() -> None:
    found = find_markers("{%- set e = '</think{}>'.format(':opensource') %}", lambda text: False)
    assert found is not None
    assert found.end == "</think:opensource>"
    apriel = find_markers("[BEGIN FINAL RESPONSE]", lambda text: False)
    assert apriel is not None
    assert apriel.start == "Here are my reasoning steps:"
