"""Writes a call as text, as a model of its format writes it."""

import json
from collections.abc import Mapping
from typing import Any

from stonechat_server.tool_formats.layout import (
    CallLayout,
    DictLayout,
    ElementLayout,
    HarmonyLayout,
    PythonicLayout,
    TagLayout,
    ToolFormat,
)

Arguments = Mapping[str, Any] | str
"""The arguments as values, or as JSON text."""


def write_function_call(format: ToolFormat, name: str, arguments: Arguments) -> str:
    """Write a section with one call."""
    match format.layout:
        case PythonicLayout() as layout:
            call = f"{name}({_keywords(arguments)})"
            return format.trigger + layout.opening + call + layout.closing
        case HarmonyLayout():
            return (
                f"{format.trigger}commentary to=functions.{name} <|constrain|>json<|message|>"
                f"{_json(arguments)}"
            )
        case layout:
            call = _before_arguments(layout, name) + _arguments(layout, arguments)
            section = layout.opening + call + layout.after_arguments + layout.closing
            return format.trigger + section


def _before_arguments(layout: CallLayout, name: str) -> str:
    text = layout.before_name
    if layout.id is not None and layout.id.after:
        text += "0" + layout.id.after
    text += name
    if layout.id is not None and layout.id.before and not layout.id.is_optional:
        text += layout.id.before + "0"
    return text + layout.after_name


def _arguments(layout: CallLayout, arguments: Arguments) -> str:
    match layout:
        case TagLayout():
            return _tags(layout, arguments)
        case ElementLayout(mark=mark) if not isinstance(arguments, str):
            return _elements(arguments, mark)
        case DictLayout(quote=quote) if not isinstance(arguments, str):
            return _bare(arguments, quote)
        case _:
            return _json(arguments)


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _keywords(arguments: Arguments) -> str:
    if isinstance(arguments, str) or not all(map(str.isidentifier, arguments)):
        return f"**{_json(arguments)}"
    return ", ".join(f"{key}={_literal(value)}" for key, value in arguments.items())


def _literal(value: object) -> str:
    is_constant = value is None or isinstance(value, bool)
    return str(value) if is_constant else json.dumps(value, ensure_ascii=False)


def _tags(layout: TagLayout, arguments: Arguments) -> str:
    if isinstance(arguments, str):
        return f"{arguments}\n"
    elements = []
    for key, value in arguments.items():
        after_key = layout.after_key
        if not isinstance(value, str) and layout.after_json_keys:
            after_key = layout.after_json_keys[_json_type(value, len(layout.after_json_keys))]
        elements.append(f"{layout.before_key}{key}{after_key}{_json(value)}{layout.after_value}")
    return "".join(elements)


def _elements(value: Any, mark: str) -> str:
    """A value as nested elements."""
    match value:
        case Mapping():
            return "".join(f"{mark}<{k}>{_elements(v, mark)}{mark}</{k}>" for k, v in value.items())
        case list():
            return "".join(f"{mark}<item>{_elements(item, mark)}{mark}</item>" for item in value)
        case _:
            return _json(value)


def _json_type(value: object, num_types: int) -> int:
    """The index of the value's type, if the layout states it."""
    types = ((bool, 1), (Mapping, 2), (list, 3), (type(None), 4))
    index = next((i for kind, i in types if isinstance(value, kind)), 0)
    return index if index < num_types else 0


def _bare(value: Any, quote: str) -> str:
    """A value with bare keys, and with strings between two `quote`."""
    match value:
        case str() if quote in value:
            return _json([value])[1:-1]
        case str():
            return f"{quote}{value}{quote}"
        case Mapping():
            return "{" + ",".join(f"{k}:{_bare(v, quote)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ",".join(_bare(item, quote) for item in value) + "]"
        case _:
            return json.dumps(value)
