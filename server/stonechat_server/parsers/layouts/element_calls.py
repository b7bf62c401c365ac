"""Reads sections of calls with nested elements (see `ElementLayout`)."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from stonechat_server.parsers.layouts.layout_reader import LayoutReader, Schemas
from stonechat_server.parsers.layouts.tag_values import (
    NULLS,
    ValueForm,
    allows_text,
    is_whole,
    read_value,
    resolve,
    value_form,
)
from stonechat_server.tool_formats.layout import CallArguments, CallEvent, ElementLayout

ITEM = "item"
MAX_DEPTH = 32
MAX_MARKS = 32
"""Marks that a JSON value may have in its strings. Without a bound an answer could take minutes."""


class ElementCallsReader(LayoutReader[ElementLayout]):
    """Emits the arguments of a call when it ends."""

    def __init__(self, layout: ElementLayout, names: Collection[str], schemas: Schemas) -> None:
        super().__init__(layout, names, schemas)
        self._text = ""
        self._end = layout.after_arguments.strip()

    def _begin_arguments(self) -> None:
        self._text, self._state = "", self._in_arguments

    def _in_arguments(self, char: str) -> list[CallEvent]:
        self._raw = ""
        self._text += char
        if not self._text.endswith(self._end):
            return []
        schema, mark = self._schemas.get(self._name, {}), self._layout.mark
        if _value_end(self._text, 0, mark, schema, schema) is None:
            return []  # the end is part of a JSON string
        text = self._text.removesuffix(self._end)
        arguments = read_elements(text, mark, schema, schema)
        self._expect_next_call()
        is_object = isinstance(arguments, dict)
        return [CallArguments(json.dumps(arguments if is_object else {}, ensure_ascii=False))]


def read_elements(
    text: str, mark: str, schema: object, root: Mapping[str, Any], depth: int = 0
) -> Any:
    """Read a value: elements, or the text of a string or JSON value. `root` has definitions."""
    schema = resolve(schema, root)
    form = value_form(schema, mark)
    if depth > MAX_DEPTH or form is not ValueForm.JSON:
        return None if form is ValueForm.TEXT_OR_NULL and text in NULLS else text
    elements = _split(text, mark, schema, root) if text.lstrip().startswith(f"{mark}<") else []
    if not elements:
        empty = None if text.strip() or allows_text(schema) else _empty(schema, root)
        return read_value(text, schema) if empty is None else empty
    if all(name == ITEM for name, _ in elements) and not _has_key(schema, root, ITEM):
        items = _inner_schema(schema, root, ITEM)
        return [read_elements(inner, mark, items, root, depth + 1) for _, inner in elements]
    return {
        name: read_elements(inner, mark, _inner_schema(schema, root, name), root, depth + 1)
        for name, inner in elements
    }


def _split(text: str, mark: str, schema: object, root: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The elements of a text, as pairs of name and inner text."""
    elements, position = [], 0
    while found := _opening(mark).search(text, position):
        name, start = found[1], found.end()
        end = _value_end(text, start, mark, _inner_schema(schema, root, name), root)
        if end is None or not text.startswith(f"{mark}</{name}>", end):
            break
        elements.append((name, text[start:end]))
        position = end + len(f"{mark}</{name}>")
    return elements


def _value_end(
    text: str, start: int, mark: str, schema: object, root: Mapping[str, Any], depth: int = 0
) -> int | None:
    """Where the mark behind a value begins. None: the text ends before it.

    A mark in a JSON string is part of the value, up to `MAX_MARKS` of them.
    """
    position = start
    while depth < MAX_DEPTH and (found := _opening(mark).match(text, position)):
        inner = _inner_schema(schema, root, found[1])
        end = _value_end(text, found.end(), mark, inner, root, depth + 1)
        if end is None:
            return None
        position = end + len(f"{mark}</{found[1]}>")
    end = text.find(mark, position)
    is_json = position == start and value_form(resolve(schema, root), mark) is ValueForm.JSON
    for _ in range(MAX_MARKS if is_json else 0):
        if end < 0 or is_whole(text[start:end]):
            break
        end = text.find(mark, end + 1)
    return end if end >= 0 else None


def _opening(mark: str) -> re.Pattern[str]:
    return re.compile(r"\s*" + re.escape(mark) + r"<([^/<>][^<>]*)>")


def _inner_schema(schema: object, root: Mapping[str, Any], name: str) -> object:
    """The schema of the element `name`, an item or a property."""
    if name == ITEM and not _has_key(schema, root, ITEM):
        return _child(schema, root, "items", None)
    return _child(schema, root, "properties", name)


def _options(schema: object, root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The schema, or its alternatives."""
    schema = resolve(schema, root)
    if not isinstance(schema, dict):
        return []
    options: list[Mapping[str, Any]] = [schema]
    for key in ("anyOf", "oneOf"):
        for option in schema.get(key, ()):
            resolved = resolve(option, root)
            options += [resolved] if isinstance(resolved, dict) else []
    return options


def _empty(schema: object, root: Mapping[str, Any]) -> list[Any] | dict[str, Any] | None:
    """The object or list without elements that the schema allows."""
    for option in _options(schema, root):
        if option.get("type") == "object" and not option.get("required"):
            return {}
        if option.get("type") == "array" and not option.get("minItems"):
            return []
    return None


def _has_key(schema: object, root: Mapping[str, Any], key: str) -> bool:
    return any(key in option.get("properties", {}) for option in _options(schema, root))


def _child(schema: object, root: Mapping[str, Any], keyword: str, key: str | None) -> object:
    """The schema of an item or a property."""
    for option in _options(schema, root):
        if keyword in option and (key is None or key in option[keyword]):
            return option[keyword] if key is None else option[keyword][key]
    return None
