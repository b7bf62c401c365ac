"""Converts a request's messages to what a chat template sees: plain dicts with text content."""

from collections.abc import Sequence
from typing import Any

from stonechat_server.errors import invalid, unsupported
from stonechat_server.parsers.json_text import load_json
from stonechat_server.prompt.chat_template import TemplateMessage
from stonechat_server.schema.messages import Message, RefusalPart, TextPart


def to_template_messages(messages: Sequence[Message]) -> list[TemplateMessage]:
    """Convert messages. Roles, names, calls and unknown keys stay; `developer` becomes `system`.

    Text parts are joined with newlines. A call's arguments become an object if their text is one.
    Raises `APIError` 400 for images, audio and files, and for calls outside assistant messages.
    """
    return [_convert(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _convert(message: Message, where: str) -> TemplateMessage:
    converted: TemplateMessage = message.model_dump(exclude_none=True, by_alias=True)
    for key in ("tool_calls", "function_call"):
        if message.role != "assistant" and converted.get(key):
            raise invalid(f"{where}.{key}", f"Only assistant messages may have {key}.")
    if message.role == "developer":
        converted["role"] = "system"
    content = message.content
    if not isinstance(content, str):
        converted["content"] = _text(content, f"{where}.content")
    if calls := converted.get("tool_calls"):
        converted["tool_calls"] = [_call_with_object(call) for call in calls]
    return converted


def _text(content: Sequence[object] | None, where: str) -> str:
    parts = enumerate(content or ())
    return "\n".join(_part_text(part, f"{where}[{i}]") for i, part in parts)


def _part_text(part: object, where: str) -> str:
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, RefusalPart):
        return part.refusal
    raise unsupported(where, "This model accepts text only: no images, audio or files.")


def _call_with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    try:
        arguments = load_json(function.get("arguments") or "{}")
    except ValueError:
        return call
    if not isinstance(arguments, dict):
        return call
    return {**call, "function": {**function, "arguments": arguments}}
