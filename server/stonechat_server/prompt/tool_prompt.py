"""What the model is told where its template cannot: tools, calls, results, the answer's form.

Tools go to the system message; a call is written in the answer's text just as the model must write
it; results follow in a user message, each in a `<tool_response>` element of the call's order.
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
    """The messages with `text` at the end of the first system message, or in one of its own."""
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        joined = f"{first['content']}\n\n{text}" if first["content"] else text
        return [{**first, "content": joined}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def describe_functions(tools: Sequence[Tool], format: ToolFormat) -> str | None:
    """Functions with their schemas, and how to call them."""
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
    """Custom tools with their grammars; no template knows them."""
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
    """One call as a section of its own."""
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
    written = []
    for key, value in arguments.items():
        is_text = isinstance(value, str)
        text = value if is_text else json.dumps(value, ensure_ascii=False)
        after_key = layout.after_key if is_text else layout.after_json_key or layout.after_key
        written.append(f"{layout.before_key}{key}{after_key}{text}{layout.after_value}")
    return "".join(written)


def write_custom_call(name: str, text: str) -> str:
    """One call of a custom tool."""
    opening = custom_calls.TRIGGER + custom_calls.BEFORE_NAME + name + custom_calls.AFTER_NAME
    return opening + text + custom_calls.CLOSING


def with_modern_calls(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """`function_call` and role `function`, the forms before tools, as calls and their results.

    Every result has the name of what was called, which some templates want.
    """
    modern: list[TemplateMessage] = []
    call_id = ""
    for position, message in enumerate(messages):
        if call := message.get("function_call"):
            call_id = f"call_{position:05d}"[-9:]
            old = {k: v for k, v in message.items() if k != "function_call"}
            new_call = {"id": call_id, "type": "function", "function": _parsed_call(call)}
            message = {**old, "tool_calls": [*message.get("tool_calls", ()), new_call]}
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
    """Calls of custom tools as text of their message, for templates that know function calls."""
    return [_write_calls(message, None) for message in messages]


def without_tool_messages(
    messages: Sequence[TemplateMessage], format: ToolFormat
) -> list[TemplateMessage]:
    """Calls and results as text, for templates that know neither."""
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
    """`format` None: only calls of custom tools."""
    calls = message.get("tool_calls") or []
    written = [call for call in calls if format is not None or call["type"] == "custom"]
    if not written:
        return message
    texts = [message["content"]] if message["content"] else []
    for call in written:
        if call["type"] == "custom":
            texts.append(write_custom_call(call["custom"]["name"], call["custom"]["input"]))
        elif format is not None:
            function = call["function"]
            texts.append(write_function_call(format, function["name"], function["arguments"]))
    kept = [call for call in calls if call not in written]
    changed = {**message, "content": "\n".join(texts), "tool_calls": kept}
    return changed if kept else {k: v for k, v in changed.items() if k != "tool_calls"}
