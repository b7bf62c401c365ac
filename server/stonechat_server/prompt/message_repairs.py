"""Rewrites messages that a chat template does not take as they are, so that little is lost."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

TemplateMessage = dict[str, Any]

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


def after_refusal(
    messages: Sequence[TemplateMessage], *, joins_calls: bool
) -> list[TemplateMessage]:
    """Change what templates refuse: ids, and the order of roles.

    Ids become nine letters and digits, in calls and results alike. Messages of one role in a row
    are joined; so are answers with only calls and results between them, at the place of the last.
    An answer goes into calls directly behind it only if `joins_calls`. An answer without anything
    gets a space. So does an answer that is missing between the user, calls or results, and the user
    again, and a user's turn before an answer that comes first.
    """
    joined: list[TemplateMessage] = []
    for message in map(_with_strict_ids, messages):
        position = _partner(joined, message, joins_calls)
        if position is not None:
            content = join_contents(joined.pop(position).get("content"), message.get("content"))
            message = {**message, "content": content}
        if missing := _missing_turn(joined, message["role"]):
            joined.append({"role": missing, "content": " "})
        is_empty = is_answer(message) and not message.get("content")
        joined.append({**message, "content": " "} if is_empty else message)
    return joined


def _partner(
    before: Sequence[TemplateMessage], message: TemplateMessage, joins_calls: bool
) -> int | None:
    """The position of an earlier message that `message` must be one with, if there is any."""
    if message["role"] == "user":
        return len(before) - 1 if before and before[-1]["role"] == "user" else None
    if message["role"] != "assistant":
        return None
    if message.get("tool_calls"):
        return len(before) - 1 if joins_calls and before and is_answer(before[-1]) else None
    position = _last_turn(before)
    return position if position >= 0 and is_answer(before[position]) else None


def _last_turn(messages: Sequence[TemplateMessage]) -> int:
    """The position of the last message that is neither calls nor a result; -1 without one."""
    positions = reversed(range(len(messages)))
    return next((i for i in positions if not _is_call_or_result(messages[i])), -1)


def _missing_turn(before: Sequence[TemplateMessage], role: str) -> str | None:
    """The role whose turn some templates demand between `before` and a message of `role`."""
    if role == "assistant" and all(message["role"] in ("system", "tool") for message in before):
        return "user"
    if role == "user" and before and _is_call_or_result(before[-1]):
        position = _last_turn(before)
        return "assistant" if position >= 0 and before[position]["role"] == "user" else None
    return None


def _is_call_or_result(message: TemplateMessage) -> bool:
    return message["role"] == "tool" or bool(message.get("tool_calls"))


def is_answer(message: TemplateMessage) -> bool:
    """Whether it is an assistant's message without calls."""
    return message["role"] == "assistant" and not message.get("tool_calls")


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
