"""Writes as text what the chat template does not render: tools, calls and results.

A call is written into its message's text, just as the model must write it. Results follow in a user
message, each in a `<tool_response>` element.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stonechat_server.parsers import custom_calls
from stonechat_server.prompt.call_repairs import with_told_results
from stonechat_server.prompt.call_text import write_function_call
from stonechat_server.prompt.message_repairs import TemplateMessage
from stonechat_server.prompt.template_messages import to_arguments
from stonechat_server.schema.tools import CustomTool, FunctionTool, GrammarFormat, Tool
from stonechat_server.tool_formats.layout import ToolFormat


def describe_functions(tools: Sequence[Tool], format: ToolFormat) -> str | None:
    """Describe the functions and how to call them; None without functions."""
    functions = [tool for tool in tools if isinstance(tool, FunctionTool)]
    if not functions:
        return None
    example = write_function_call(format, "FUNCTION", {"ARGUMENT": "VALUE"})
    return "\n".join(
        [
            "You can call these functions:",
            *(_describe_function(tool) for tool in functions),
            "To call one, write its name and arguments like this, as the end of your answer:",
            example,
            "Their results come in <tool_response> elements. If no function helps, just answer.",
        ]
    )


def _describe_function(tool: FunctionTool) -> str:
    function = tool.function
    description: dict[str, Any] = {"name": function.name}
    if function.description:
        description["description"] = function.description
    if function.parameters:
        description["parameters"] = function.parameters
    return json.dumps(description, ensure_ascii=False)


def describe_customs(tools: Sequence[Tool]) -> str | None:
    """Describe the custom tools, which no template renders; None without custom tools."""
    customs = [tool for tool in tools if isinstance(tool, CustomTool)]
    if not customs:
        return None
    return "\n".join(
        [
            "You can call these tools, which take plain text as input:",
            *(_describe_custom(tool) for tool in customs),
            "To call one, write its name and the input like this, as the end of your answer:",
            write_custom_call("TOOL", "INPUT"),
        ]
    )


def _describe_custom(tool: CustomTool) -> str:
    custom = tool.custom
    text = f"- {custom.name}" + (f": {custom.description}" if custom.description else "")
    if isinstance(custom.format, GrammarFormat):
        grammar = custom.format.grammar
        text += f"\n  The input must follow this {grammar.syntax} grammar:\n{grammar.definition}"
    return text


def write_custom_call(name: str, text: str) -> str:
    """Write one call of a custom tool."""
    opening = custom_calls.TRIGGER + custom_calls.BEFORE_NAME + name + custom_calls.AFTER_NAME
    return opening + text + custom_calls.CLOSING


def with_modern_calls(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Replace the older `function_call` and role `function` with tool calls and their results.

    Calls without an id of their own get one, and their results too, in the order of the calls.
    Each result gets the name of the called tool, because some templates need it.
    """
    modern: list[TemplateMessage] = []
    waiting: list[tuple[str, str]] = []
    names: dict[str, str] = {}
    for position, message in enumerate(messages):
        if call := message.get("function_call"):
            message = {k: v for k, v in message.items() if k != "function_call"}
            function = {**call, "arguments": to_arguments(call.get("arguments"))}
            new_call = {"id": "", "type": "function", "function": function}
            message["tool_calls"] = [*message.get("tool_calls", ()), new_call]
        elif message["role"] == "function":
            message = {**message, "role": "tool", "tool_call_id": ""}
        if calls := message.get("tool_calls"):
            new_calls = _with_ids(calls, position)
            waiting = [(old["id"], new["id"]) for old, new in zip(calls, new_calls, strict=True)]
            names |= {call["id"]: _call_name(call) for call in new_calls}
            message = {**message, "tool_calls": new_calls}
        elif message["role"] == "tool":
            call_id = _take(waiting, message["tool_call_id"])
            message = {**message, "tool_call_id": call_id}
            if call_id in names:
                message.setdefault("name", names[call_id])
        modern.append(message)
    return modern


def _with_ids(calls: Sequence[dict[str, Any]], position: int) -> list[dict[str, Any]]:
    """Give an id of nine letters and digits to each call that has none, or that of another call."""
    ids = Counter(call["id"] for call in calls)
    return [
        call
        if call["id"] and ids[call["id"]] == 1
        else {**call, "id": f"c{position % 10**5:05d}{number % 10**3:03d}"}
        for number, call in enumerate(calls)
    ]


def _take(waiting: list[tuple[str, str]], given: str) -> str:
    """Return the id of the call that a result with the id `given` answers; take it from the list.

    A result or a call without an id goes with the first that is left.
    """
    matches = [pair for pair in waiting if pair[0] == given]
    matches += [pair for pair in waiting if not given or not pair[0]]
    if not matches:
        return given
    waiting.remove(matches[0])
    return matches[0][1]


def _call_name(call: Mapping[str, Any]) -> str:
    return str((call.get("function") or call["custom"])["name"])


def without_custom_calls(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Write custom calls into their message's text, for templates that render function calls."""
    return [_write_calls(message, None) for message in messages]


def without_calls(messages: Sequence[TemplateMessage], format: ToolFormat) -> list[TemplateMessage]:
    """Write all calls into their message's text, for templates that render results only."""
    return [_write_calls(message, format) for message in messages]


def without_tool_messages(
    messages: Sequence[TemplateMessage], format: ToolFormat
) -> list[TemplateMessage]:
    """Write calls and results as text, for templates that render neither."""
    return with_told_results(without_calls(messages, format))


def _write_calls(message: TemplateMessage, format: ToolFormat | None) -> TemplateMessage:
    """Write calls into the message's text; without a `format`, only calls of custom tools."""
    calls = message.get("tool_calls") or []
    text_calls = [call for call in calls if format is not None or call["type"] == "custom"]
    if not text_calls:
        return message
    texts = [message["content"]] if message.get("content") else []
    for call in text_calls:
        if call["type"] == "custom":
            texts.append(write_custom_call(call["custom"]["name"], call["custom"]["input"]))
        elif format is not None:
            function = call["function"]
            texts.append(write_function_call(format, function["name"], function["arguments"]))
    other_calls = [call for call in calls if call not in text_calls]
    new_message = {**message, "content": "\n".join(texts), "tool_calls": other_calls}
    return (
        new_message if other_calls else {k: v for k, v in new_message.items() if k != "tool_calls"}
    )
