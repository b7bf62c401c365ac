"""Rewrites messages that a chat template does not take as they are, so that little is lost."""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from stonechat_server.prompt.environment import to_json
from stonechat_server.prompt.reasoning_names import NAMES

TemplateMessage = dict[str, Any]

TEXT_KEY = "arguments"
"""The key under which arguments that are no object are shown to a template that needs one."""
_STRICT_ID = re.compile(r"[a-zA-Z0-9]{9}")


def before_first_user(messages: Sequence[TemplateMessage], text: str) -> list[TemplateMessage]:
    """Put `text` before the first user message's content, or in a user message of its own."""
    for position, message in enumerate(messages):
        if message["role"] == "user":
            user = {**message, "content": join_contents(text, message.get("content"))}
            return [*messages[:position], user, *messages[position + 1 :]]
    return [{"role": "user", "content": text}, *messages]


def with_parts(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Make all content lists of parts."""
    return [
        {**message, "content": [{"type": "text", "text": content}] if content else []}
        if isinstance(content := message.get("content", ""), str)
        else message
        for message in messages
    ]


def without_system(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Put the text of each system message before the content of the next user message.

    System messages that no user message follows become one.
    """
    merged: list[TemplateMessage] = []
    held: list[Any] = []
    for message in messages:
        if message["role"] == "system":
            held.append(message.get("content"))
        elif message["role"] == "user" and held:
            merged.append({**message, "content": join_contents(*held, message.get("content"))})
            held = []
        else:
            merged.append(message)
    return [*merged, {"role": "user", "content": join_contents(*held)}] if held else merged


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
        results = []
        while position < len(messages) and messages[position]["role"] == "tool":
            results.append(messages[position])
            position += 1
        ids = [call.get("id") for call in calls]
        for number, call in enumerate(calls):
            first = message if number == 0 else {"role": "assistant", "content": ""}
            split.append({**first, "tool_calls": [call]})
            split += [result for result in results if result.get("tool_call_id") == ids[number]]
        split += [result for result in results if result.get("tool_call_id") not in ids]
    return split


def after_refusal(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Change what templates refuse: ids, order of roles, and reasoning beside content and calls.

    Ids become nine letters and digits, in calls and results alike. Messages of one role in a row
    are joined. An answer without anything gets a space. So does an answer that is missing between a
    result and the user, and a user's turn before an answer that comes first. Messages that have
    content and calls lose their reasoning.
    """
    changed = [_with_strict_ids(_without_double_reasoning(message)) for message in messages]
    joined: list[TemplateMessage] = []
    for message in changed:
        if joined and _are_joinable(joined[-1], message):
            content = join_contents(joined[-1].get("content"), message.get("content"))
            joined[-1] = {**message, "content": content}
            continue
        if missing := _missing_turn(joined, message["role"]):
            joined.append({"role": missing, "content": " "})
        is_empty = message["role"] == "assistant" and not _has_something(message)
        joined.append({**message, "content": " "} if is_empty else message)
    return joined


def _missing_turn(before: Sequence[TemplateMessage], role: str) -> str | None:
    """The role whose turn some templates demand between `before` and a message of `role`."""
    if role == "assistant" and all(message["role"] == "system" for message in before):
        return "user"
    return "assistant" if role == "user" and before and before[-1]["role"] == "tool" else None


def _are_joinable(first: TemplateMessage, second: TemplateMessage) -> bool:
    same_role = first["role"] == second["role"] in ("user", "assistant")
    return same_role and "tool_calls" not in first


def _has_something(message: TemplateMessage) -> bool:
    return bool(message.get("content") or message.get("tool_calls"))


def _without_double_reasoning(message: TemplateMessage) -> TemplateMessage:
    if message.get("tool_calls") and message.get("content"):
        return {key: value for key, value in message.items() if key not in NAMES}
    return message


def _with_strict_ids(message: TemplateMessage) -> TemplateMessage:
    if calls := message.get("tool_calls"):
        return {**message, "tool_calls": [{**c, "id": _strict_id(c.get("id"))} for c in calls]}
    if "tool_call_id" in message:
        return {**message, "tool_call_id": _strict_id(message["tool_call_id"])}
    return message


def _strict_id(call_id: object) -> str:
    text = str(call_id or "")
    if _STRICT_ID.fullmatch(text):
        return text
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()[:9]


def join_contents(*contents: Any, separator: str = "\n\n") -> Any:
    """Join contents, with blank lines unless it says otherwise; lists of parts become one list."""
    if all(isinstance(content, str) or not content for content in contents):
        return separator.join(content for content in contents if content)
    parts: list[Any] = []
    for content in filter(None, contents):
        if parts:
            parts.append({"type": "text", "text": separator})
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return parts


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
