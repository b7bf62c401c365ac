"""A repeated call ends the answer before it; a call that only begins alike streams on."""

import json
from typing import Any

import pytest

from stonechat_server.parsers.deltas import (
    ContentDelta,
    EndDelta,
    ParsedDelta,
    ToolCallDelta,
)
from stonechat_server.parsers.repeated_calls import CallFilter
from stonechat_server.parsers.tool_calls import ToolCallParser, ToolNames
from stonechat_server.tool_formats.hermes import HERMES

NAMES = ToolNames(functions=("add", "now"), custom=("sql",))


def call(arguments: str, name: str = "add") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>\n'


def custom(text: str) -> str:
    return f'<custom_tool_call name="sql">\n{text}\n</custom_tool_call>\n'


def new_filter(**options: Any) -> CallFilter:
    inner = ToolCallParser(format=HERMES, names=NAMES)
    return CallFilter(inner, **({"is_parallel": True, "ends_at_repeat": True} | options))


def fold(deltas: list[ParsedDelta]) -> tuple[str, list[tuple[str, str]], bool]:
    """Return the content, the calls, and whether the parser ended the answer."""
    content, calls = "", []
    for delta in deltas:
        if isinstance(delta, ContentDelta):
            content += delta.text
        elif isinstance(delta, ToolCallDelta):
            if delta.name is not None:
                assert delta.index == len(calls)
                assert delta.id
                calls.append((delta.name, ""))
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    ends = [isinstance(delta, EndDelta) for delta in deltas]
    assert not any(ends[:-1])
    return content, calls, any(ends)


def read(text: str, **options: Any) -> tuple[str, list[tuple[str, str]], bool]:
    """Read a text at once and character by character, and check that both agree."""
    whole = fold(new_filter(**options).feed(text, finished=True))
    parser = new_filter(**options)
    pieces = [delta for char in text for delta in parser.feed(char, finished=False)]
    assert fold([*pieces, *parser.feed("", finished=True)]) == whole
    return whole


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('{"a": 1, "b": [2, "x"]}', '{"a": 1, "b": [2, "x"]}'),
        ('{"a": 1, "b": [2, "x"]}', '{ "b":[2,"x"] , "a":1 }'),
        ('{"a": "\\ud83d"}', '{"a": "\\uD83D"}'),
        ('{"a": "é\\n{"}', '{"a": "\\u00e9\\u000a{"}'),
        ('{"a": {"b": 1, "c": 2}}', '{"a": {"c": 2, "b": 1}}'),
        ('{"a": 1, "b": [2.0]}', '{"a": 1.0, "b": [2]}'),
        ("{}", "{ }"),
    ],
)
def test_equal_arguments_are_a_repeat(first: str, second: str) -> None:
    text = "I add." + call(first) + call(second) + call('{"a": 9}')
    assert read(text) == ("I add.", [("add", first)], True)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": 1}', '{"a": "1"}'),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": 1, "b": 2}', '{"a": 1}'),
        ('{"a": "x"}', '{"a": "xy"}'),
        ('{"a": "xy"}', '{"a": "x"}'),
        ('{"a": {}}', "{}"),
        ("{}", '{"a": {}}'),
        ('{"a": [1, 2]}', '{"a": [2, 1]}'),
    ],
)
def test_other_arguments_are_another_call(first: str, second: str) -> None:
    text = call(first) + "And\n" + call(second) + "then."
    assert read(text) == ("Andthen.", [("add", first), ("add", second)], False)


def test_another_name_is_another_call() -> None:
    assert read(call("{}") + call("{}", "now"))[1] == [("add", "{}"), ("now", "{}")]


def test_any_earlier_call_counts() -> None:
    calls = [call(json.dumps({"a": i})) for i in (1, 2, 3, 2)]
    assert read("".join(calls))[1:] == ([("add", f'{{"a": {i}}}') for i in (1, 2, 3)], True)


def test_custom_calls_are_compared_as_text() -> None:
    assert read(custom("a") + custom("b") + custom("a")) == ("", [("sql", "a"), ("sql", "b")], True)
    assert read(custom("ab") + custom("a"))[1:] == ([("sql", "ab"), ("sql", "a")], False)


def test_a_repeat_that_is_cut_is_shown() -> None:
    """It is not known to be one, and the answer has to say that it is cut."""
    text = call('{"a": "xyz"}') + call('{"a": "xyz"}')[:-18]
    content, calls, has_ended = read(text)
    assert (content, has_ended) == ("", False)
    assert [name for name, _ in calls] == ["add", "add"]
    cut = custom("ab") + custom("ab").removesuffix("\n</custom_tool_call>\n")
    assert read(cut)[1:] == ([("sql", "ab")] * 2, False)


def test_a_call_is_held_back_only_while_it_may_be_a_repeat() -> None:
    parser = new_filter()
    parser.feed(call('{"city": "Paris", "days": 3}'), finished=False)
    assert parser.feed('<tool_call>\n{"name": "add", "arguments": {"city": "P', False) == []
    (delta,) = parser.feed("o", finished=False)
    assert isinstance(delta, ToolCallDelta)
    assert (delta.name, delta.arguments) == ("add", '{"city": "Po')
    assert parser.feed("r", False) == [ToolCallDelta(index=1, arguments="r")]
    rest = parser.feed('to"}}\n</tool_call>\n<tool_call>\n{"name": "now", "arguments": {', False)
    (now,) = rest[1:]
    assert isinstance(now, ToolCallDelta)
    assert (now.name, now.arguments) == ("now", "{")


def test_nothing_follows_the_end() -> None:
    parser = new_filter()
    text = call('{"a": 1}')
    assert isinstance(parser.feed(text + text[:50], finished=False)[-1], EndDelta)
    assert not parser.is_call_cut
    assert parser.feed("text", finished=False) == []
    assert parser.feed("", finished=True) == []


def test_repeats_can_be_allowed() -> None:
    text = call('{"a": 1}') * 3
    assert read(text, ends_at_repeat=False)[1:] == ([("add", '{"a": 1}')] * 3, False)


def test_a_second_call_ends_an_answer_without_parallel_calls() -> None:
    text = call('{"a": 1}') + "Text." + call("{}", "now")
    for ends_at_repeat in (True, False):
        options = {"is_parallel": False, "ends_at_repeat": ends_at_repeat}
        assert read(text, **options) == ("Text.", [("add", '{"a": 1}')], True)


def test_arguments_that_are_no_json_are_never_a_repeat() -> None:
    text = '{"a": tru}'
    assert read(call(text) * 2)[1] == [("add", text)] * 2
    assert read(call('{"a": true}') + call(text))[1] == [("add", '{"a": true}'), ("add", text)]
