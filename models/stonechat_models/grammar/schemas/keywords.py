"""Tells which keywords of JSON Schema a grammar may enforce, and how their values must look."""

from collections.abc import Callable

from stonechat_models.grammar.schemas.annotations import FORMATS
from stonechat_models.grammar.schemas.json_schema import MAX_PROPERTIES
from stonechat_models.grammar.schemas.numbers import is_number
from stonechat_models.grammar.schemas.schema_tree import COUNT_KEYS

_TYPES = frozenset(("array", "boolean", "integer", "null", "number", "object", "string"))
_UNSUPPORTED_FORMATS = FORMATS - {
    *("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
}


def is_schema(value: object) -> bool:
    """Return whether the value can be a schema."""
    return isinstance(value, dict | bool)


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _is_count(value: object) -> bool:
    return is_number(value) and value >= 0 and value % 1 == 0


def is_type(value: object) -> bool:
    """Return whether the value can be that of `type`."""
    types = value if isinstance(value, list) else [value]
    return bool(types) and all(isinstance(name, str) and name in _TYPES for name in types)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_map(value: object) -> bool:
    return isinstance(value, dict) and len(value) <= MAX_PROPERTIES


_WELL_FORMED: dict[str, Callable[[object], bool]] = {
    "$schema": lambda value: True,
    **dict.fromkeys(("$defs", "definitions"), lambda value: isinstance(value, dict)),
    **dict.fromkeys(("properties", "patternProperties"), _is_map),
    **dict.fromkeys(("additionalItems", "additionalProperties"), is_schema),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems", "enum"), _is_list),
    "items": lambda value: is_schema(value) or _is_list(value),
    "const": lambda value: True,
    "type": is_type,
    "required": _is_names,
    **dict.fromkeys(COUNT_KEYS, _is_count),
    **dict.fromkeys(("minimum", "maximum"), is_number),
    "exclusiveMinimum": lambda value: isinstance(value, int | float),  # a boolean in draft 4
    "exclusiveMaximum": lambda value: isinstance(value, int | float),
    "multipleOf": lambda value: is_number(value) and value != 0,
    "format": lambda value: isinstance(value, str) and value not in _UNSUPPORTED_FORMATS,
}


def is_well_formed(key: str, value: object) -> bool:
    """Return whether the keyword may be enforced with this value. `$ref` and `pattern` may not."""
    return key in _WELL_FORMED and _WELL_FORMED[key](value)
