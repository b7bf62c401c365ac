"""Sections of JSON calls that do not follow their layout."""

import re

import pytest

from stonechat_server.parsers.deltas import ToolCallDelta
from stonechat_server.parsers.layouts.json_calls import JsonCallsReader
from stonechat_server.parsers.tool_calls import ToolCallParser, ToolNames
from stonechat_server.tool_formats.deepseek import DEEPSEEK_V31
from stonechat_server.tool_formats.hermes import HERMES
from stonechat_server.tool_formats.kimi import KIMI, SOLAR
from stonechat_server.tool_formats.layout import CallStart, JsonLayout, ToolFormat
from stonechat_server.tool_formats.mistral import MISTRAL, MISTRAL_LIST
from stonechat_server.tool_formats.tool_list import APERTUS, COHERE

NAMES = ("add", "now")


def read(format: ToolFormat, text: str) -> tuple[list[tuple[str, str]], str | None]:
    """Return the calls of a section without its trigger, and the rest."""
    assert isinstance(format.layout, JsonLayout)
    reader = JsonCallsReader(format.layout, NAMES, {})
    calls: list[tuple[str, str]] = []
    for position, char in enumerate(text):
        for event in reader.push(char):
            if isinstance(event, CallStart):
                calls.append((event.name, ""))
            else:
                calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
        if reader.rest is not None:
            reader.rest += text[position + 1 :]
            break
    assert reader.finish() == []
    return calls, reader.rest


@pytest.mark.parametrize(
    "text",
    [
        '\n{"name": "other", "arguments": {}}\n</tool_call>',
        '\n{"arguments": {}, "name": 7}\n</tool_call>',
        '\n{"parameters": [1], "name": "add"}\n</tool_call>',
        '\n{"name" "add"}\n</tool_call>',
        "\n{}",
        '\n["add"]',
        "\nadd()",
        "\n",
    ],
)
def test_what_is_no_call_is_left_whole(text: str) -> None:
    assert read(HERMES, text) == ([], text)


@pytest.mark.parametrize(
    "text",
    [
        '\n{"parameters": {"a": 1}, "name": "add"}\n</tool_call>',
        '\n{"id": 3, "name": "add", "arguments": {"a": 1}}\n</tool_call>',
        '\n{"name": "add", "arguments": {"a": 1}, "id": {"x": "}"}}\n</tool_call>',
    ],
)
def test_keys_may_come_in_another_order(text: str) -> None:
    assert read(HERMES, text) == ([("add", '{"a": 1}')], "")


def test_a_call_needs_no_arguments() -> None:
    assert read(HERMES, '\n{"name": "now"}\n</tool_call>') == ([("now", "{}")], "")


def test_a_number_must_follow_the_name() -> None:
    begin = "<|tool_call_begin|>functions."
    rest = "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
    assert read(KIMI, f"{begin}now:12{rest} ok") == ([("now", "{}")], " ok")
    for broken in (f"{begin}now:{rest}", f"{begin}now:x{rest}", f"{begin}now:1x{rest}"):
        assert read(KIMI, broken) == ([], broken)


def test_arguments_must_be_an_object() -> None:
    layout = DEEPSEEK_V31.layout
    assert isinstance(layout, JsonLayout)
    head = layout.before_name + "now" + layout.after_name
    assert read(DEEPSEEK_V31, head + " \n{}" + layout.after_arguments + layout.closing) == (
        [("now", "{}")],
        "",
    )
    calls, rest = read(DEEPSEEK_V31, head + "[1] ok")
    assert calls == [("now", "")]
    assert rest == "[1] ok"


def test_text_after_the_arguments_ends_the_section() -> None:
    layout = DEEPSEEK_V31.layout
    assert isinstance(layout, JsonLayout)
    head = layout.before_name + "now" + layout.after_name
    calls, rest = read(DEEPSEEK_V31, head + "{} and more")
    assert calls == [("now", "{}")]
    assert rest == " and more"


def test_a_section_without_a_closing_keeps_its_calls() -> None:
    text = '\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert read(HERMES, text + "\n<tool_c") == ([("now", "{}")], "")
    assert read(HERMES, text + " ok") == ([("now", "{}")], " ok")


def ids_of(format: ToolFormat, text: str) -> list[str]:
    parser = ToolCallParser(format=format, names=ToolNames(functions=("add", "now")))
    deltas = parser.feed(text, finished=True)
    return [delta.id or "" for delta in deltas if isinstance(delta, ToolCallDelta) and delta.name]


def test_ids_that_the_model_writes_are_kept() -> None:
    text = "[TOOL_CALLS]now[CALL_ID]123456789[ARGS]{}"
    first, second = ids_of(MISTRAL, f"{text}{text}")
    assert first == "123456789"
    assert second != first
    assert re.fullmatch("[a-zA-Z0-9]{9}", second)
    (other,) = ids_of(MISTRAL, "[TOOL_CALLS]now[CALL_ID]12[ARGS]{}")
    assert re.fullmatch("[a-zA-Z0-9]{9}", other)
    call = "<|tool_call:begin|>ab_1<|tool_call:name|>now<|tool_call:args|>{}<|tool_call:end|>"
    assert ids_of(SOLAR, f"<|tool_calls|>{call}{call.replace('ab_1', 'cd')}") == ["ab_1", "cd"]


def test_ids_that_only_number_calls_are_not_kept() -> None:
    call = '{"tool_call_id": "0", "tool_name": "now", "parameters": {}}'
    (call_id,) = ids_of(COHERE, f"<|START_ACTION|>[{call}]<|END_ACTION|>")
    assert call_id.startswith("call_")


def test_calls_may_have_an_id_key_and_names_of_their_own() -> None:
    text = '[{"name": "now", "arguments": {}, "id": "123456789"}]'
    assert read(MISTRAL_LIST, text) == ([("now", "{}")], "")
    text = '[{"parameters": {"a": 1}, "tool_name": "add"}]<|END_ACTION|>'
    assert read(COHERE, text) == ([("add", '{"a": 1}')], "")
    assert read(APERTUS, '[{"add": {"a": 1}}, {"now": {}}]<|tools_suffix|>') == (
        [("add", '{"a": 1}'), ("now", "{}")],
        "",
    )


@pytest.mark.parametrize(
    "text",
    [
        '\n{"name": "add", "arguments": "{\\"a\\": 1}"}\n</tool_call>',
        '\n{"name": "add", "arguments": " {\\"a\\": 1}\\n" , "id": 3}\n</tool_call>',
        '\n{"arguments": "{\\"a\\": 1}", "name": "add"}\n</tool_call>',
    ],
)
def test_arguments_may_be_a_string_of_their_object(text: str) -> None:
    assert read(HERMES, text) == ([("add", '{"a": 1}')], "")


@pytest.mark.parametrize("arguments", ['"Paris"', '"[1]"', '"\\ud800"', '"{"'])
def test_other_strings_are_no_arguments(arguments: str) -> None:
    calls, rest = read(HERMES, f'{{"name": "add", "arguments": {arguments}}}\n</tool_call>')
    assert calls == [("add", "")]
    assert rest is not None
    assert rest.lstrip() == f"{arguments}}}\n</tool_call>"
    text = f'{{"arguments": {arguments}, "name": "add"}}'
    assert read(HERMES, text) == ([], text)
