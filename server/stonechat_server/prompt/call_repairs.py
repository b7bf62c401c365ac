"""Rewrites calls and their results, where a chat template does not show them as they are."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from stonechat_server.prompt.environment import to_json
from stonechat_server.prompt.message_repairs import TemplateMessage, join_contents
from stonechat_server.prompt.reasoning_names import NAMES

TEXT_KEY = "arguments"
"""The key under which arguments that are no object are shown to a template that needs one."""


def with_text_arguments(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Write the arguments of all calls as JSON text."""
    return [_with_arguments(message, _as_text) for message in messages]


def with_object_arguments(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Make the arguments of all calls objects: text that is none goes under `TEXT_KEY`."""
    return [_with_arguments(message, _as_object) for message in messages]


def has_broken_arguments(messages: Sequence[TemplateMessage]) -> bool:
    """Whether a call's arguments are no object."""
    return any(
        isinstance(function := call.get("function"), dict)
        and not isinstance(function.get("arguments"), dict)
        for message in messages
        for call in message.get("tool_calls") or ()
    )


def with_null_content(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Make the content of messages that have only calls null."""
    return [
        {**message, "content": None}
        if message.get("tool_calls") and not message.get("content")
        else message
        for message in messages
    ]


def with_text_apart(
    messages: Sequence[TemplateMessage], end: int | None = None
) -> list[TemplateMessage]:
    """Give the text beside calls a message of its own, before them. `end` ends the changes."""
    apart: list[TemplateMessage] = []
    for message in messages[:end]:
        if message.get("tool_calls") and message.get("content"):
            apart.append({"role": "assistant", "content": message["content"]})
            message = {**message, "content": ""}
        apart.append(message)
    return apart if end is None else [*apart, *messages[end:]]


def with_joined_reasoning(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Put the reasoning of messages that have text and calls before their text."""
    joined: list[TemplateMessage] = []
    for message in messages:
        reasoning = message.get(NAMES[0])
        if reasoning and message.get("tool_calls") and message.get("content"):
            message = {key: value for key, value in message.items() if key not in NAMES}
            message["content"] = join_contents(reasoning, message["content"])
        joined.append(message)
    return joined


def with_single_calls(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Give each call a message of its own, followed by its results."""
    split: list[TemplateMessage] = []
    position = 0
    while position < len(messages):
        message = messages[position]
        position += 1
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            split.append(message)
            continue
        results: dict[object, list[TemplateMessage]] = {}
        while position < len(messages) and messages[position]["role"] == "tool":
            result = messages[position]
            results.setdefault(result.get("tool_call_id"), []).append(result)
            position += 1
        for number, call in enumerate(calls):
            first = message if number == 0 else {"role": "assistant", "content": ""}
            split.append({**first, "tool_calls": [call]})
            split += results.pop(call.get("id"), ())
        split += chain(*results.values())
    return split


def with_told_results(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Write results that do not follow the message with their call as a user's text."""
    told: list[TemplateMessage] = []
    lone: list[Any] = []
    ids: set[object] = set()
    for message in messages:
        if message["role"] != "tool":
            told += _told(lone)
            lone, ids = [], {call.get("id") for call in message.get("tool_calls") or ()}
        elif message.get("tool_call_id") not in ids:
            lone.append(_result_text(message))
            continue
        told.append(message)
    return told + _told(lone)


def _told(results: Sequence[Any]) -> list[TemplateMessage]:
    if not results:
        return []
    return [{"role": "user", "content": join_contents(*results, separator="\n")}]


def _result_text(message: TemplateMessage) -> Any:
    """A result as text; one with images as a list of items."""
    name, content = message.get("name"), message.get("content", "")
    opening = f'<tool_response name="{name}">' if name else "<tool_response>"
    if isinstance(content, list):
        return join_contents(opening, content, "</tool_response>", separator="\n")
    return f"{opening}\n{content}\n</tool_response>"


def _with_arguments(
    message: TemplateMessage, convert: Callable[[object], object]
) -> TemplateMessage:
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_with_converted(call, convert) for call in calls]}


def _with_converted(call: dict[str, Any], convert: Callable[[object], object]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    return {**call, "function": {**function, "arguments": convert(function.get("arguments"))}}


def _as_text(arguments: object) -> str:
    if isinstance(arguments, str):
        return arguments
    return to_json({} if arguments is None else arguments)


def _as_object(arguments: object) -> dict[str, Any]:
    if isinstance(arguments, dict):
        return arguments
    return {} if arguments in (None, "") else {TEXT_KEY: arguments}
