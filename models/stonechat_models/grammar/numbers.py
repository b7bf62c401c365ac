"""Bounds the digits of numbers, which a schema of type `number` does not.

A model that has written `1.000` may go on with zeros up to its token limit. A second grammar, which
each token must follow too, allows any JSON whose numbers have a bounded length. It takes all that
Python and JavaScript write for 64-bit floats.
"""

import json
from typing import Any

from stonechat_models.grammar.json_schema import COMPILE_OPTIONS, MAX_NUMBER, WHITESPACE
from stonechat_models.grammar.schema_tree import Schema, nodes

MAX_DIGITS = 21
"""Before the point. JavaScript writes up to 21."""
MAX_DECIMALS = 24
MIN_BOUND = 1e-6
"""A smaller bound could need more decimals."""

_STRING = json.dumps({"type": "string", "x-guidance": COMPILE_OPTIONS})
_DIGITS = f"-?(0|[1-9][0-9]{{0,{MAX_DIGITS - 1}}})"
NUMBER = rf"{_DIGITS}(\.[0-9]{{1,{MAX_DECIMALS}}})?([eE][+-]?[0-9]{{1,3}})?"
BOUNDED_JSON = f"""
start: value
value: "null" | "true" | "false" | NUMBER | string | list | object
list: "[" gap (value (gap "," gap value)* gap)? "]"
object: "{{" gap (pair (gap "," gap pair)* gap)? "}}"
pair: string gap ":" gap value
string: %json {_STRING}
gap: SPACE?
NUMBER: /{NUMBER}/
SPACE: /{WHITESPACE}/
"""

_EXCLUSIVE = ("exclusiveMinimum", "exclusiveMaximum")
_BOUNDS = ("minimum", "maximum", *_EXCLUSIVE)
_OTHERS = frozenset(("$ref", "allOf", "anyOf", "oneOf", "enum", "const"))


def needs_bounded_numbers(schema: object) -> bool:
    """Whether values of the schema may have endless numbers that can be cut short anywhere.

    They cannot where a bound or `multipleOf` may demand a further digit.
    """
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        return False
    found = list(nodes(schema))
    return any(map(_may_have_numbers, found)) and all(map(_can_be_cut, found))


def _may_have_numbers(node: Schema) -> bool:
    kinds = _types(node)
    if kinds is None:
        return _OTHERS.isdisjoint(node)
    has_any_items = "array" in kinds and node.get("items", True) is True
    others = node.get("additionalProperties", "properties" not in node)
    return "number" in kinds or has_any_items or ("object" in kinds and others is True)


def _can_be_cut(node: Schema) -> bool:
    kinds = _types(node)
    if kinds is not None and "number" not in kinds:
        return True
    if "multipleOf" in node or any(_is_number(node.get(key)) for key in _EXCLUSIVE):
        return False
    bounds = [abs(node[key]) for key in _BOUNDS if _is_number(node.get(key))]
    return all(bound == 0 or MIN_BOUND <= bound <= MAX_NUMBER for bound in bounds)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _types(node: Schema) -> list[Any] | None:
    kinds = node.get("type")
    return kinds if kinds is None or isinstance(kinds, list) else [kinds]
