"""Converts a request's messages to what a chat template sees: plain dicts.

Content is text. Where a message has images or audio, it is a list of texts and these in order.
"""

import json
from collections.abc import Sequence
from typing import Any

from stonechat_server.errors import APIError, invalid, unsupported
from stonechat_server.parsers.json_text import load_json
from stonechat_server.prompt.media import MediaItem
from stonechat_server.prompt.message_repairs import TemplateMessage
from stonechat_server.prompt.reasoning_names import text_of, with_reasoning_text
from stonechat_server.schema.messages import (
    AnswerTextPart,
    AssistantMessage,
    FunctionMessage,
    Message,
    ReasoningPart,
    RefusalPart,
    SourcePart,
    TextPart,
    ToolMessage,
)

CALL_LEFTOVERS = frozenset(
    {"index", "parsed_arguments", "extra_content", "provider_specific_fields", "thought_signature"}
)
"""Keys that servers and client libraries add to the calls of an answer. No template reads them."""
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
MEDIA_PARTS = frozenset(
    {
        *("image_url", "image", "input_image", "video_url", "video", "input_audio", "audio"),
        *("audio_url", "file", "input_file", "document"),
    }
)
"""Types of content parts in a tool's result. A list with any other object is plain JSON."""


def to_template_messages(messages: Sequence[Message]) -> list[TemplateMessage]:
    """Convert messages. Roles, names, calls and unknown keys stay; `developer` becomes `system`.

    Nulls and empty lists count as absent. Text parts are joined with newlines. A call's arguments
    become an object if they or their text are one, and are text otherwise. Raises `APIError` 400
    for other files, and for calls outside assistant messages. Media must be loaded.
    """
    converted = []
    for position, message in enumerate(messages):
        dumped: TemplateMessage = message.model_dump(exclude_none=True, by_alias=True)
        if message.role == "developer":
            dumped["role"] = "system"
        content = message.content
        if content is not None and not isinstance(content, str):
            dumped["content"] = _content(message, f"messages[{position}].content")
        if content == []:
            del dumped["content"]
        if isinstance(message, AssistantMessage):
            dumped = _answer(message, dumped)
        elif message.model_extra:
            _check_no_calls(dumped, f"messages[{position}]")
        converted.append(dumped)
    return converted


def _check_no_calls(message: TemplateMessage, where: str) -> None:
    for key in ("tool_calls", "function_call"):
        if message.pop(key, None):
            raise invalid(f"{where}.{key}", f"Only assistant messages may have {key}.")


def _content(message: Message, where: str) -> str | list[Any]:
    """Return the text of content that is not one string; with media, a list of items."""
    content = message.content
    if isinstance(message, ToolMessage | FunctionMessage):
        parts = [content] if isinstance(content, dict) else content
        if not is_parts(parts):
            return json.dumps(content, ensure_ascii=False)
        content = parts
    items = [_part_item(part, f"{where}[{i}]") for i, part in enumerate(content or ())]
    given = [item for item in items if item is not None]
    texts = [item for item in given if isinstance(item, str)]
    if len(texts) == len(given):
        return "\n".join(texts)
    return [{"type": "text", "text": i} if isinstance(i, str) else i for i in given]


def is_parts(content: object) -> bool:
    """Whether a tool's result is a list of content parts, not any other JSON."""
    return isinstance(content, list) and all(
        isinstance(part, SourcePart | TextPart)
        or (isinstance(part, dict) and part.get("type") in TEXT_PARTS | MEDIA_PARTS)
        for part in content
    )


def _part_item(part: object, where: str) -> str | MediaItem | None:
    """Return a part's text or media; None for reasoning, which is not part of the content."""
    if isinstance(part, ReasoningPart):
        return None
    if isinstance(part, TextPart | AnswerTextPart):
        return part.text or ""
    if isinstance(part, RefusalPart):
        return part.refusal
    if isinstance(part, dict) and part["type"] in TEXT_PARTS:
        return str(part.get("text") or "")
    if not isinstance(part, SourcePart):
        raise no_media(where)
    assert part.media is not None, "media are loaded before"
    return MediaItem(part.media)


def no_media(where: str) -> APIError:
    """A 400 for parts of other types."""
    return unsupported(
        where,
        f"'{where}': only text, images, audio, videos and files are read here. Images are of the "
        "type image_url, audio of input_audio, videos of video_url, documents of file.",
    )


def _answer(message: AssistantMessage, dumped: TemplateMessage) -> TemplateMessage:
    """Convert what only an assistant's message has: a refusal, calls and reasoning."""
    if message.refusal and not dumped.get("content"):
        dumped["content"] = message.refusal
    if message.tool_calls:
        dumped["tool_calls"] = [_call(call) for call in dumped["tool_calls"]]
    for key in [key for key, value in dumped.items() if value == []]:
        del dumped[key]
    parts = message.content if isinstance(message.content, list) else ()
    thoughts = [part.model_extra for part in parts if isinstance(part, ReasoningPart)]
    if thoughts or message.model_extra:
        dumped = with_reasoning_text(dumped, text_of(thoughts))
    return dumped


def _call(call: dict[str, Any]) -> dict[str, Any]:
    call = {key: value for key, value in call.items() if key not in CALL_LEFTOVERS}
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    function = {key: value for key, value in function.items() if key not in CALL_LEFTOVERS}
    return {**call, "function": {**function, "arguments": to_arguments(function.get("arguments"))}}


def to_arguments(value: object) -> dict[str, Any] | str:
    """Return a call's arguments as an object, or as text if they are none.

    Empty arguments are an object without keys. Text may be the JSON of an object, also twice over.
    """
    if isinstance(value, dict):
        return value
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    try:
        loaded = load_json(value)
        if isinstance(loaded, str):
            loaded = load_json(loaded)
    except ValueError:
        return value
    if loaded is None:
        return {}
    return loaded if isinstance(loaded, dict) else value
