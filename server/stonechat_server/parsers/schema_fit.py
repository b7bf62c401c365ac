"""Checks a value against a JSON schema, as far as is needed to tell a call from other JSON."""

from collections.abc import Callable, Mapping
from operator import ge, gt, le, lt
from typing import Any

_MAX_DEPTH = 32
"""A `$ref` may lead back to its own schema."""
_NUMBER = (int, float)
_BOUNDS: dict[str, tuple[tuple[type, ...], Callable[[float, float], bool]]] = {
    "minimum": (_NUMBER, ge),
    "maximum": (_NUMBER, le),
    "exclusiveMinimum": (_NUMBER, gt),
    "exclusiveMaximum": (_NUMBER, lt),
    "minLength": ((str,), ge),
    "maxLength": ((str,), le),
    "minItems": ((list,), ge),
    "maxItems": ((list,), le),
}
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
    "number": _NUMBER,
    "integer": _NUMBER,
}


def fits(value: object, schema: object, root: Mapping[str, Any], depth: int = 0) -> bool:
    """Whether `value` fits `schema`, whose references point into `root`.

    Types, keys, listed values, bounds and combinations of schemas count. Patterns, formats and
    unknown keywords do not.
    """
    if not isinstance(schema, Mapping):
        return schema is not False
    if depth > _MAX_DEPTH:
        return False
    target = schema.get("$ref")
    if isinstance(target, str) and not fits(value, _find(target, root), root, depth + 1):
        return False
    if not _is_of_type(value, schema.get("type")) or not _is_listed(value, schema):
        return False
    if not _is_within(value, schema):
        return False

    def fits_each(options: object) -> list[bool]:
        return [fits(value, s, root, depth + 1) for s in _as_list(options)]

    if not all(fits_each(schema.get("allOf"))):
        return False
    if any(key in schema and not any(fits_each(schema[key])) for key in ("anyOf", "oneOf")):
        return False
    if isinstance(value, dict):
        return _fits_object(value, schema, root, depth)
    if isinstance(value, list) and "items" in schema:
        return all(fits(item, schema["items"], root, depth + 1) for item in value)
    return True


def _fits_object(
    value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], depth: int
) -> bool:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    if any(key not in value for key in _as_list(schema.get("required"))):
        return False
    others = True if "patternProperties" in schema else schema.get("additionalProperties", True)
    return all(
        fits(child, properties.get(key, others), root, depth + 1) for key, child in value.items()
    )


def _find(target: str, root: Mapping[str, Any]) -> object:
    """The schema that a reference such as `#/$defs/city` points to; True if there is none."""
    found: object = root
    for part in target.removeprefix("#").split("/")[1:]:
        found = found.get(part, True) if isinstance(found, Mapping) else True
    return found if target.startswith("#") else True


def _is_of_type(value: object, types: object) -> bool:
    names = [types] if isinstance(types, str) else _as_list(types)
    return not names or any(_has_type(value, name) for name in names)


def _has_type(value: object, name: object) -> bool:
    if not isinstance(name, str) or not isinstance(value, _TYPES.get(name, object)):
        return False
    if isinstance(value, bool):
        return name not in ("number", "integer")
    return name != "integer" or not isinstance(value, float) or value.is_integer()


def _is_listed(value: object, schema: Mapping[str, Any]) -> bool:
    listed = _as_list(schema.get("enum")) + ([schema["const"]] if "const" in schema else [])
    return not listed or any(type(value) is type(item) and value == item for item in listed)


def _is_within(value: Any, schema: Mapping[str, Any]) -> bool:
    size = len(value) if isinstance(value, str | list) else value
    for key, (types, is_within) in _BOUNDS.items():
        bound: Any = schema.get(key)
        if type(value) in types and type(bound) in _NUMBER and not is_within(size, bound):
            return False
    return True


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
