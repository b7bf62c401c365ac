"""Calls with bare keys: values of all kinds, and text that is not a call."""

import json
from typing import Any

import pytest

from stonechat_server.parsers.layouts.dict_calls import DictCallsReader
from stonechat_server.parsers.layouts.dict_values import read_dict_value
from stonechat_server.tool_formats.gemma import FUNCTION_GEMMA, GEMMA4
from stonechat_server.tool_formats.layout import (
    CallArguments,
    CallStart,
    DictLayout,
    ToolFormat,
)

SCHEMAS = {
    "get": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "now": {},
}


def read(format: ToolFormat, text: str) -> tuple[list[tuple[str, str]], str | None, bool]:
    assert isinstance(format.layout, DictLayout)
    reader = DictCallsReader(format.layout, SCHEMAS.keys(), SCHEMAS)
    calls: list[tuple[str, str]] = []
    events = []
    for position, char in enumerate(text):
        events += reader.push(char)
        if reader.rest is not None:
            reader.rest += text[position + 1 :]
            break
    for event in [*events, *reader.finish()]:
        if isinstance(event, CallStart):
            calls.append((event.name, ""))
        else:
            assert isinstance(event, CallArguments)
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return calls, reader.rest, reader.is_cut


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('city:<|"|>Paris<|"|>,days:3', {"city": "Paris", "days": 3}),
        ('city:<|"|>a, {b} "c" <|"|>', {"city": 'a, {b} "c" '}),
        ('city: "a\\"}," , days : -7', {"city": 'a"},', "days": -7}),
        ("", {}),
        (" ", {}),
        ("a:[],b:{},c:true,d:null,e:1.5e10", {"a": [], "b": {}, "c": True, "d": None, "e": 1.5e10}),
        ('a:[<|"|>x, y<|"|>,{b:[1,2]}]', {"a": ["x, y", {"b": [1, 2]}]}),
        ('<|"|>city<|"|>:<|"|>x<|"|>,"b":{"c":1}', {"city": "x", "b": {"c": 1}}),
        ('city:<|"|>7<|"|>,days:<|"|>7<|"|>', {"city": "7", "days": 7}),
        ("city:Paris", {"city": "Paris"}),
    ],
)
def test_values(arguments: str, expected: dict[str, Any]) -> None:
    calls, rest, is_cut = read(GEMMA4, f"call:get{{{arguments}}}<tool_call|> ok")
    assert [(name, json.loads(text)) for name, text in calls] == [("get", expected)]
    assert (rest, is_cut) == (" ok", False)


def test_calls_in_a_row() -> None:
    text = "call:now{}<end_function_call>\n<start_function_call>call:get{days:<escape>2<escape>}"
    calls, rest, is_cut = read(FUNCTION_GEMMA, text + "<end_function_call>")
    assert calls == [("now", "{}"), ("get", '{"days": 2}')]
    assert (rest, is_cut) == ("", False)


def test_text_that_is_no_call_is_the_rest() -> None:
    assert read(GEMMA4, "call:other{}") == ([], "call:other{}", False)
    assert read(GEMMA4, "call me") == ([], "call me", False)
    assert read(GEMMA4, "call:get then") == ([("get", "")], "then", True)


def test_a_call_that_is_cut_keeps_whole_arguments() -> None:
    calls, rest, is_cut = read(GEMMA4, 'call:get{days:3,city:<|"|>Par')
    assert calls == [("get", '{"days": 3')]
    assert (rest, is_cut) == ("", True)


@pytest.mark.parametrize("text", ["[1", "{a}", "{a:1", "[[1] 2]", "x]", '"a'])
def test_text_that_is_no_value_is_a_string(text: str) -> None:
    assert read_dict_value(text, "<escape>") == text


def test_a_string_without_its_end_is_what_came() -> None:
    assert read_dict_value("<escape>ab", "<escape>") == "ab"
