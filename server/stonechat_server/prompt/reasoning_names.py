"""Finds the reasoning that an earlier answer had, under any name that servers give it."""

from typing import Any

NAMES = ("reasoning_content", "reasoning", "thinking")
"""What templates read. Each template knows one or two of these names."""
BLOCK_NAMES = ("thinking_blocks", "reasoning_details")
"""Lists of objects with the reasoning's text, beside or in place of the names above."""
_TEXT_KEYS = ("text", "thinking", "reasoning", "summary", "content")


def with_reasoning_names(message: dict[str, Any]) -> dict[str, Any]:
    """Give the message's reasoning all of `NAMES`; a name that has a text keeps it."""
    texts = [message[name] for name in NAMES if message.get(name) is not None]
    reasoning = next((text for text in texts if text), texts[0] if texts else None)
    if reasoning is None:
        return message
    others = {name: reasoning for name in NAMES if message.get(name) is None}
    return {**message, **others, "reasoning_content": reasoning}


def with_reasoning_text(message: dict[str, Any], from_parts: str) -> dict[str, Any]:
    """Make the message's reasoning text: what is no text, or empty, is left out.

    Without any text under `NAMES`, the reasoning is `from_parts` or the text of `BLOCK_NAMES`.
    """
    texts = {name: text for name in NAMES if (text := text_of(message.get(name)))}
    if not texts:
        blocks = (text_of(message.get(name)) for name in BLOCK_NAMES)
        text = from_parts or next((block for block in blocks if block), "")
        texts = {"reasoning_content": text} if text else {}
    others = {k: v for k, v in message.items() if k not in NAMES and k not in BLOCK_NAMES}
    return {**others, **texts}


def text_of(value: object) -> str:
    """Return the text in a string, in an object's text, or in a list of either."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(text_of(item) for item in value)
    if isinstance(value, dict):
        return next((text for key in _TEXT_KEYS if (text := text_of(value.get(key)))), "")
    return ""
