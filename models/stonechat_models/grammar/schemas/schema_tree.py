"""Walks over JSON schemas: which values of a schema are schemas themselves, and where they stand.

Values of `const` and `enum`, and those of unknown keywords, are not schemas.
"""

from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]
Path = tuple[str | int, ...]
"""The keys and indices that lead from the root of a schema to one of its values."""

DEFINITIONS = "#/$defs/"
"""How each reference begins in the plain form."""
SCHEMA_KEYS = frozenset(
    (
        *("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not"),
        *("propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"),
    )
)
SCHEMA_LIST_KEYS = frozenset(("allOf", "anyOf", "items", "oneOf", "prefixItems"))
SCHEMA_MAP_KEYS = frozenset(
    ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
)
COUNT_KEYS = frozenset(
    ("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties")
)
NUMBER_KEYS = frozenset(
    ("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf")
)


def change_children(node: Schema, change: Callable[[Schema, Path], Any]) -> Schema:
    """Return a copy of `node` with `change(child, path from node)` for each schema in it.

    Schemas that are booleans stay as they are.
    """
    return {key: _changed(key, value, change) for key, value in node.items()}


def _changed(key: str, value: Any, change: Callable[[Schema, Path], Any]) -> Any:
    if key in SCHEMA_KEYS and isinstance(value, dict):
        return change(value, (key,))
    if key in SCHEMA_LIST_KEYS and isinstance(value, list):
        return [change(v, (key, i)) if isinstance(v, dict) else v for i, v in enumerate(value)]
    if key in SCHEMA_MAP_KEYS and isinstance(value, dict):
        return {n: change(v, (key, n)) if isinstance(v, dict) else v for n, v in value.items()}
    return value


def with_objects(node: Schema) -> Schema:
    """Return the schema with an empty object for what Go and PHP write in its place.

    PHP writes an empty map, or a schema without keywords, as `[]`; Go writes a missing map as null.
    """
    filled: Schema = {}
    for key, value in node.items():
        if key in SCHEMA_MAP_KEYS and value in (None, []):
            value = {}
        elif key in SCHEMA_MAP_KEYS and isinstance(value, dict):
            value = {name: {} if child == [] else child for name, child in value.items()}
        elif key in SCHEMA_KEYS and value == []:
            value = {}
        filled[key] = value
    return change_children(filled, lambda child, _: with_objects(child))


def nodes(schema: Schema) -> Iterator[Schema]:
    """Yield the schema and its subschemas, those that are objects."""
    yield schema
    for child in children(schema):
        yield from nodes(child)


def children(node: Schema) -> list[Schema]:
    """The schemas directly inside `node`, those that are objects."""
    found: list[Schema] = []
    change_children(node, lambda child, _: found.append(child))
    return found


def definition_name(node: object) -> str | None:
    """The name in `$defs` that a schema in the plain form refers to, if it refers to one."""
    ref = node.get("$ref") if isinstance(node, dict) else None
    if isinstance(ref, str) and ref.startswith(DEFINITIONS):
        return ref.removeprefix(DEFINITIONS)
    return None


def values(value: object) -> list[object]:
    """The values directly inside a JSON value."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
