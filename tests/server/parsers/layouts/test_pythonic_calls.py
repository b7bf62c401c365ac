"""Lists of Python calls: values in both notations, and the text that is not part of a list."""

import ast
import json
from typing import Any

import pytest

from stonechat_server.parsers.layouts.pythonic_calls import PythonicReader, read_literal
from stonechat_server.tool_formats.layout import CallArguments, CallStart, PythonicLayout

NAMES = ("add", "now")


def read(text: str, closing: str = "") -> tuple[list[tuple[str, str]], str | None, bool]:
    """Return the calls, the rest, and whether the last call is cut."""
    reader = PythonicReader(PythonicLayout(closing="]" + closing), NAMES)
    events = []
    for position, char in enumerate(text):
        events += reader.push(char)
        if reader.rest is not None:
            reader.rest += text[position + 1 :]
            break
    events += reader.finish()
    calls: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, CallStart):
            calls.append((event.name, ""))
        else:
            assert isinstance(event, CallArguments)
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return calls, reader.rest, reader.is_cut


def whole_calls(text: str, closing: str = "") -> tuple[list[tuple[str, Any]], str | None]:
    calls, rest, is_cut = read(text, closing)
    assert not is_cut
    return [(name, json.loads(arguments)) for name, arguments in calls], rest


def test_keywords_are_read_as_python_reads_them() -> None:
    source = "add(a=1, b='it\\'s, ) ok', c=[True, None], d={'x': (1.5)}, e=\"]\")"
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    expected = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert whole_calls(f"[{source}]") == ([("add", expected)], "")


def test_unpacked_objects_join_the_keywords() -> None:
    text = '  [add(a=1, **{"b c": 2}), now(), now( )]'
    assert whole_calls(text) == ([("add", {"a": 1, "b c": 2}), ("now", {}), ("now", {})], "")


def test_json_literals_are_read_too() -> None:
    text = '[add(a=true, b=null, c={"d": [false]})]'
    assert whole_calls(text) == ([("add", {"a": True, "b": None, "c": {"d": [False]}})], "")


@pytest.mark.parametrize(
    "text",
    [
        "Hello [add(a=1)]",
        "[1, 2]",
        "['add']",
        "[other(a=1)]",
        "[add",
        "[",
    ],
)
def test_text_that_is_no_list_of_calls_is_left_whole(text: str) -> None:
    assert read(text) == ([], text, False)


def test_text_between_calls_ends_the_list() -> None:
    assert whole_calls("[now() and more]") == ([("now", {})], " and more]")
    assert whole_calls("[now(), 'text']") == ([("now", {})], ", 'text']")
    assert whole_calls("[now()] and more") == ([("now", {})], " and more")


def test_a_list_may_have_a_closing_token() -> None:
    assert whole_calls("[now()]<|end|>", "<|end|>") == ([("now", {})], "")
    assert whole_calls("[now()]<|end|> ok", "<|end|>") == ([("now", {})], " ok")
    calls, rest = whole_calls("[now()]<b>", "<|end|>")
    assert calls == [("now", {})]
    assert rest is not None
    assert rest.endswith("<b>")


def test_a_list_that_ends_early_keeps_its_calls() -> None:
    calls, rest, is_cut = read("[now(), add(a=1, b=")
    assert calls == [("now", "{}"), ("add", '{"a": 1')]
    assert (rest, is_cut) == ("", True)


@pytest.mark.parametrize("text", ["7", " -1.5e3 ", '"é\\n"', "[1, {}]", "null", "true"])
def test_json_is_read_as_json(text: str) -> None:
    assert read_literal(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'a': null, \"b\":\n-6\r}", {"a": None, "b": -6}),
        ("['true', true, False, {'null': [null]}]", ["true", True, False, {"null": [None]}]),
        ("{'a': none}", "{'a': none}"),
        ("true.x", "true.x"),
    ],
)
def test_words_of_json_may_stand_beside_those_of_python(text: str, value: object) -> None:
    """The grammar allows either, value by value."""
    assert read_literal(text) == value


@pytest.mark.parametrize("text", ["'a\"b'", "{'a': [True, None]}", "(1, 2)", "0x10", "None"])
def test_python_is_read_as_python(text: str) -> None:
    assert read_literal(text) == ast.literal_eval(text)


@pytest.mark.parametrize(
    "text", ["Paris", "NaN", "1e999", "{1, 2}", "b'x'", "1 + 2j", "f(x)", "[1,", "'", "(" * 5000]
)
def test_what_json_cannot_express_stays_text(text: str) -> None:
    assert read_literal(f" {text}\n") == text
