"""Calls and results that a chat template does not render are written as the format reads them."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from stonechat_server.parsers.deltas import ToolCallDelta
from stonechat_server.parsers.tool_calls import ToolCallParser, ToolNames
from stonechat_server.prompt.tool_prompt import (
    describe_customs,
    describe_functions,
    with_modern_calls,
    without_custom_calls,
    without_tool_messages,
    write_function_call,
)
from stonechat_server.schema.tools import Tool
from stonechat_server.tool_formats.deepseek import DEEPSEEK_V32
from stonechat_server.tool_formats.gemma import GEMMA4
from stonechat_server.tool_formats.glm import GLM
from stonechat_server.tool_formats.harmony import HARMONY
from stonechat_server.tool_formats.hermes import HERMES
from stonechat_server.tool_formats.invoke import MINIMAX_M3
from stonechat_server.tool_formats.kimi import KIMI
from stonechat_server.tool_formats.layout import ToolFormat
from stonechat_server.tool_formats.qwen_coder import QWEN_CODER
from stonechat_server.tool_formats.select import FORMATS
from stonechat_server.tool_formats.tool_list import COHERE
from stonechat_server.tool_formats.whole_answer import PYTHONIC

READ_BACK = [format for format in FORMATS.values() if format is not HARMONY]
ARGUMENTS = {"city": "Zürich 'x'", "days": [1, 2], "deep": {"on": True, "none": None}}


def tools(*definitions: dict[str, Any]) -> list[Tool]:
    adapter: TypeAdapter[list[Tool]] = TypeAdapter(list[Tool])
    return adapter.validate_python(definitions)


def read_back(format: ToolFormat, text: str) -> list[tuple[str, object]]:
    parser = ToolCallParser(format=format, names=ToolNames(functions=("weather",), custom=()))
    calls: list[list[str]] = []
    for delta in parser.feed(text, finished=True):
        assert isinstance(delta, ToolCallDelta), delta
        if delta.name is not None:
            calls.append([delta.name, ""])
        calls[-1][1] += delta.arguments
    return [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("format", READ_BACK, ids=lambda format: format.name)
def test_a_written_call_is_read_back(format: ToolFormat) -> None:
    text = write_function_call(format, "weather", ARGUMENTS)
    assert read_back(format, text) == [("weather", ARGUMENTS)]


def test_calls_with_tags_are_written_as_the_families_write_them() -> None:
    arguments = {"city": "Zürich", "days": 2}
    assert write_function_call(QWEN_CODER, "weather", arguments) == (
        "<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"
    )
    assert write_function_call(GLM, "weather", arguments) == (
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
    )
    deepseek = write_function_call(DEEPSEEK_V32, "weather", arguments)
    assert 'parameter name="city" string="true">Zürich<' in deepseek
    assert 'parameter name="days" string="false">2<' in deepseek


def test_other_layouts_are_written_as_the_families_write_them() -> None:
    assert write_function_call(PYTHONIC, "weather", {"days": 2}) == "[weather(days=2)]"
    assert write_function_call(PYTHONIC, "weather", {"a b": 2}) == '[weather(**{"a b": 2})]'
    assert write_function_call(GEMMA4, "weather", {"city": "Bern", "days": [2, None]}) == (
        '<|tool_call>call:weather{city:<|"|>Bern<|"|>,days:[2,null]}<tool_call|>'
    )
    assert '"tool_call_id": "0", "tool_name": "weather"' in write_function_call(
        COHERE, "weather", {}
    )
    mark = "]<]minimax[>["
    assert f"{mark}<days>{mark}<item>2{mark}</item>{mark}</days>" in write_function_call(
        MINIMAX_M3, "weather", {"days": [2]}
    )
    assert write_function_call(HARMONY, "weather", {"days": 2}) == (
        '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"days": 2}'
    )
    assert write_function_call(KIMI, "weather", {}) == (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
    )


def test_arguments_that_are_text_are_written_unchanged() -> None:
    broken = '{"days": '
    assert broken in write_function_call(HERMES, "weather", broken)
    assert f"<function=weather>\n{broken}\n</function>" in write_function_call(
        QWEN_CODER, "weather", broken
    )


def test_functions_and_customs_are_described_apart() -> None:
    both = tools(
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "Says what it's like.",
                "parameters": {"type": "object"},
            },
        },
        {"type": "function", "function": {"name": "now"}},
        {
            "type": "custom",
            "custom": {
                "name": "sql",
                "description": "Runs a query.",
                "format": {
                    "type": "grammar",
                    "grammar": {"syntax": "lark", "definition": 'start: "SELECT"'},
                },
            },
        },
        {"type": "custom", "custom": {"name": "note"}},
    )
    functions, customs = describe_functions(both, HERMES), describe_customs(both)
    assert functions is not None
    assert customs is not None
    described = [json.loads(line) for line in functions.splitlines() if line.startswith('{"name"')]
    assert {"name": "now"} in described
    assert {
        "name": "weather",
        "description": "Says what it's like.",
        "parameters": {"type": "object"},
    } in described
    assert "sql" not in functions
    assert "- sql: Runs a query.\n" in customs
    assert 'lark grammar:\nstart: "SELECT"' in customs
    assert "- note\n" in customs
    assert "weather" not in customs
    assert describe_functions(both[2:], HERMES) is None
    assert describe_customs(both[:2]) is None


def test_older_calls_become_calls_with_the_same_id_as_their_result() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "function_call": {"name": "weather", "arguments": '{"days": 2}'},
        },
        {"role": "function", "name": "weather", "content": "sun"},
        {
            "role": "assistant",
            "content": "",
            "function_call": {"name": "now", "arguments": "{broken"},
        },
    ]
    user, assistant, result, other = with_modern_calls(messages)
    assert user == messages[0]
    (call,) = assistant["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": {"days": 2}}
    assert "function_call" not in assistant
    assert result["role"] == "tool"
    assert result["tool_call_id"] == call["id"]
    assert result["name"] == "weather"
    assert other["tool_calls"][0]["function"] == {"name": "now", "arguments": "{broken"}
    assert other["tool_calls"][0]["id"] != call["id"]


def test_results_get_the_name_of_their_call() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {}}}
    custom = {"id": "c2", "type": "custom", "custom": {"name": "sql", "input": "SELECT"}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call, custom]},
        {"role": "tool", "tool_call_id": "c2", "content": "1"},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "tool", "tool_call_id": "other", "content": "3"},
        {"role": "tool", "tool_call_id": "c1", "name": "given", "content": "4"},
    ]
    names = [message.get("name") for message in with_modern_calls(messages)]
    assert names == [None, "sql", "weather", None, "given"]


def test_calls_and_results_become_text() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": {}}}
    custom = {"id": "b", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}
    messages = [
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call, custom]},
        {"role": "tool", "tool_call_id": "a", "name": "weather", "content": "sun"},
        {"role": "tool", "tool_call_id": "b", "content": "1"},
        {"role": "user", "content": "thanks"},
    ]
    assistant, results, user = without_tool_messages(messages, HERMES)
    assert "tool_calls" not in assistant
    first, _, rest = assistant["content"].partition("\n")
    assert first == "Let me see."
    assert rest.startswith(write_function_call(HERMES, "weather", {}))
    assert "SELECT 1" in rest
    assert results == {
        "role": "user",
        "content": '<tool_response name="weather">\nsun\n</tool_response>\n'
        "<tool_response>\n1\n</tool_response>",
    }
    assert user == messages[3]


def test_only_custom_calls_become_text_for_a_template_that_renders_functions() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": {}}}
    custom = {"id": "b", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}
    plain = {"role": "assistant", "content": "", "tool_calls": [call]}
    mixed = {"role": "assistant", "content": "", "tool_calls": [call, custom]}
    alone = {"role": "assistant", "content": "Ok.", "tool_calls": [custom]}
    ours = without_custom_calls([plain, mixed, alone])
    assert ours[0] == plain
    assert ours[1]["tool_calls"] == [call]
    assert "SELECT 1" in ours[1]["content"]
    assert "tool_calls" not in ours[2]
    assert ours[2]["content"].startswith("Ok.\n")
