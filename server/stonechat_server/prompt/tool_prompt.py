"""Adds to the prompt what the chat template does not render: tools, calls, results, answer form.

Tools are described in the system message. A call is written into its message's text, just as the
model must write it. Results follow in a user message, each in a `<tool_response>` element.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stonechat_server.parsers import custom_calls
from stonechat_server.parsers.json_text import load_json
from stonechat_server.prompt.chat_template import TemplateMessage
from stonechat_server.schema.tools import CustomTool, FunctionTool, GrammarFormat, Tool
from stonechat_server.tool_formats.layout import (
    HarmonyLayout,
    JsonLayout,
    PythonicLayout,
    TagLayout,
    ToolFormat,
)


def with_system_text(messages: Sequence[TemplateMessage], text: str) -> list[TemplateMessage]:
    """Append `text` to the system message at the beginning, or add such a message."""
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        joined = f"{first['content']}\n\n{text}" if first["content"] else text
        return [{**first, "content": joined}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


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


def write_function_call(format: ToolFormat, name: str, arguments: Mapping[str, Any] | str) -> str:
    """Write a section with one call."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    match format.layout:
        case PythonicLayout(closing=closing):
            return f"{format.trigger}[{name}(**{text})]{closing}"
        case HarmonyLayout():
            return (
                f"{format.trigger}commentary to=functions.{name} <|constrain|>json<|message|>{text}"
            )
        case TagLayout() as layout:
            text = _write_tags(layout, arguments)
            call = layout.before_name + name + layout.after_name + text + layout.after_arguments
        case JsonLayout() as layout:
            number = "0" + layout.after_number if layout.after_number else ""
            call = layout.before_name + name + layout.after_name + number + text
            call += layout.after_arguments
    return format.trigger + layout.opening + call + layout.closing


def _write_tags(layout: TagLayout, arguments: Mapping[str, Any] | str) -> str:
    if isinstance(arguments, str):
        return f"{arguments}\n"
    elements = []
    for key, value in arguments.items():
        is_text = isinstance(value, str)
        text = value if is_text else json.dumps(value, ensure_ascii=False)
        after_key = layout.after_key if is_text else layout.after_json_key or layout.after_key
        elements.append(f"{layout.before_key}{key}{after_key}{text}{layout.after_value}")
    return "".join(elements)


def write_custom_call(name: str, text: str) -> str:
    """Write one call of a custom tool."""
    opening = custom_calls.TRIGGER + custom_calls.BEFORE_NAME + name + custom_calls.AFTER_NAME
    return opening + text + custom_calls.CLOSING


def with_modern_calls(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Replace the older `function_call` and role `function` with tool calls and their results.

    Each result gets the name of the called tool, because some templates need it.
    """
    modern: list[TemplateMessage] = []
    call_id = ""
    for position, message in enumerate(messages):
        if call := message.get("function_call"):
            call_id = f"call_{position:05d}"[-9:]
            other_keys = {k: v for k, v in message.items() if k != "function_call"}
            new_call = {"id": call_id, "type": "function", "function": _parsed_call(call)}
            message = {**other_keys, "tool_calls": [*message.get("tool_calls", ()), new_call]}
        elif message["role"] == "function":
            message = {**message, "role": "tool", "tool_call_id": call_id}
        modern.append(message)
    names = _call_names(modern)
    return [_with_name(message, names) for message in modern]


def _with_name(message: TemplateMessage, names: Mapping[str, str]) -> TemplateMessage:
    name = names.get(message.get("tool_call_id", ""))
    if message["role"] != "tool" or name is None or "name" in message:
        return message
    return {**message, "name": name}


def _parsed_call(call: Mapping[str, Any]) -> dict[str, Any]:
    try:
        arguments = load_json(call.get("arguments") or "{}")
    except ValueError:
        arguments = call["arguments"]
    return {"name": call["name"], "arguments": arguments}


def without_custom_calls(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Write custom calls into their message's text, for templates that render function calls."""
    return [_write_calls(message, None) for message in messages]


def without_tool_messages(
    messages: Sequence[TemplateMessage], format: ToolFormat
) -> list[TemplateMessage]:
    """Write calls and results as text, for templates that render neither."""
    rendered: list[TemplateMessage] = []
    is_after_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        if not is_result:
            rendered.append(_write_calls(message, format))
        elif is_after_result:
            last = rendered[-1]
            rendered[-1] = {
                **last,
                "content": f"{last['content']}\n{_write_result(message)}",
            }
        else:
            rendered.append({"role": "user", "content": _write_result(message)})
        is_after_result = is_result
    return rendered


def _call_names(messages: Sequence[TemplateMessage]) -> dict[str, str]:
    calls = (call for message in messages for call in message.get("tool_calls") or ())
    return {call["id"]: (call.get("function") or call["custom"])["name"] for call in calls}


def _write_result(message: TemplateMessage) -> str:
    name = message.get("name")
    opening = f'<tool_response name="{name}">' if name else "<tool_response>"
    return f"{opening}\n{message['content']}\n</tool_response>"


def _write_calls(message: TemplateMessage, format: ToolFormat | None) -> TemplateMessage:
    """Write calls into the message's text; without a `format`, only calls of custom tools."""
    calls = message.get("tool_calls") or []
    text_calls = [call for call in calls if format is not None or call["type"] == "custom"]
    if not text_calls:
        return message
    texts = [message["content"]] if message["content"] else []
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
