"""Decides by a schema how a value is written between tags, and reads values from their text.

A string is written verbatim, any other value as JSON. Python literals that some templates write
instead of JSON (`True`, `None`, `{'a': 1}`) are read too.
"""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from stonechat_server.parsers.layouts.pythonic_calls import read_literal

_ANNOTATIONS = frozenset(("title", "description", "default", "examples", "$comment", "deprecated"))
_JOINS = frozenset(("allOf", "anyOf", "oneOf"))
_PLAIN = _ANNOTATIONS | {"type", "enum", "const", "minLength", "maxLength"}
_TYPES: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
NULLS = ("null", "None")
"""How null is written where a text may stand too."""


class ValueForm(Enum):
    """How the values that a schema allows are written."""

    TEXT = "text"
    TEXT_OR_NULL = "text or null"
    """Text, but `null` (or `None`, which some templates write) is null."""
    JSON = "json"


def resolve(value: object, schema: Mapping[str, Any]) -> object:
    """A property's schema. If it is only a `$ref` to a definition of `schema`, that definition.

    What joins a single schema, such as pydantic's `{"allOf": [{"$ref": …}]}`, is that schema.
    """
    for _ in range(8):
        value = sole_part(value)
        if not isinstance(value, dict) or not isinstance(value.get("$ref"), str):
            break
        root, _, name = value["$ref"].rpartition("/")
        group = {"#/$defs": "$defs", "#/definitions": "definitions"}.get(root, "")
        if value.keys() - _ANNOTATIONS - {"$ref"} or name not in schema.get(group, {}):
            break
        value = schema[group][name]
    return value


def sole_part(value: object) -> object:
    """The only schema of an `allOf`, `anyOf` or `oneOf` beside annotations; else `value`."""
    keys = value.keys() - _ANNOTATIONS if isinstance(value, dict) else set()
    parts = value[min(keys)] if len(keys) == 1 and keys <= _JOINS else None  # type: ignore[index]
    return parts[0] if isinstance(parts, list) and len(parts) == 1 else value


def value_form(value: object, tag: str) -> ValueForm:
    """How the values of schema `value` are written; `tag` is the closing tag.

    Strings are text if the schema only limits their length or only lists them. Strings with a
    pattern or a format are JSON, and so are listed strings that contain the tag.
    """
    if not isinstance(value, dict):
        return ValueForm.JSON
    if _is_text(value, tag):
        return ValueForm.TEXT
    options = value.get("anyOf")
    if options is not None and not value.keys() - _ANNOTATIONS - {"anyOf"}:
        texts = [option for option in options if _is_text(option, tag)]
        is_pair = len(options) == 2 and len(texts) == 1 and any(map(_is_null, options))
        has_null = is_pair and {"null", "None"} & set(_literals(texts[0]))
        return ValueForm.TEXT_OR_NULL if is_pair and not has_null else ValueForm.JSON
    if sorted(_as_list(value.get("type"))) == ["null", "string"]:
        is_free = not value.keys() - _ANNOTATIONS - {"type"}
        return ValueForm.TEXT_OR_NULL if is_free else ValueForm.JSON
    return ValueForm.JSON


def text_schema(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of the text alone, if the value may be null too."""
    return next((option for option in value.get("anyOf", ()) if not _is_null(option)), value)


def _is_null(value: object) -> bool:
    return isinstance(value, dict) and value.get("type") == "null"


def _literals(value: Mapping[str, Any]) -> list[Any]:
    """The values that a schema lists."""
    return [*value.get("enum", ()), *([value["const"]] if "const" in value else ())]


def _is_text(value: object, tag: str) -> bool:
    if not isinstance(value, dict) or value.keys() - _PLAIN or {"enum", "const"} <= value.keys():
        return False
    literals = _literals(value)
    has_bounds = not {"minLength", "maxLength"}.isdisjoint(value)
    if literals and has_bounds:
        return False
    if any(not isinstance(text, str) or tag in text for text in literals):
        return False
    return value.get("type") == "string" or (bool(literals) and "type" not in value)


def read_value(text: str, value: object) -> Any:
    """The value of `text` by the schema `value`.

    A literal of a type that the schema does not allow is a string, if the schema allows strings,
    and so is a number that JSON writes otherwise, such as `0x1F`.
    """
    literal = read_literal(text)
    allowed = _types(value)
    if not isinstance(literal, (*_TYPES,)):
        return text
    kind = _TYPES[type(literal)]
    is_number = kind in ("integer", "number")
    if is_number and allows_text(value) and not _JSON_NUMBER.fullmatch(text.strip()):
        return text
    if allowed and kind not in allowed and not (kind == "integer" and "number" in allowed):
        return text if "string" in allowed else literal
    return literal


def allows_text(value: object) -> bool:
    """Whether a string may be a value of the schema `value`."""
    types = _types(value)
    return not types or "string" in types


def is_whole(text: str) -> bool:
    """False if `text` begins like a string, list or object literal that is not complete."""
    text = text.strip()
    return text[:1] not in ('"', "[", "{") or read_literal(text) != text


def _types(value: object) -> set[str]:
    """The JSON types that a schema allows; empty if it does not restrict them."""
    if not isinstance(value, dict):
        return set()
    types = set(_as_list(value.get("type")))
    for key in ("anyOf", "oneOf"):
        options = [_types(option) for option in value.get(key, ())]
        if options and all(options):
            types |= set().union(*options)
    return types or {_TYPES[type(x)] for x in _literals(value) if type(x) in _TYPES}


def _as_list(value: object) -> list[str]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []
