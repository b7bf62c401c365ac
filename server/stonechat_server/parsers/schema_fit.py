"""Checks a value against a JSON schema, as far as is needed to tell a call from other JSON."""

from collections.abc import Callable, Mapping
from operator import ge, gt, le, lt
from typing import Any

from stonechat_server.parsers.json_text import is_same_json

_MAX_DEPTH = 32
_MAX_STEPS = 50_000
"""Pairs of a value and a schema. A check that needs more blocks the server for too long."""
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


def fits(value: object, schema: object, root: Mapping[str, Any]) -> bool:
    """Whether `value` fits `schema`, whose references point into `root`.

    Types, keys, listed values, bounds and combinations of schemas count. Patterns, formats and
    unknown keywords do not. A check that takes too many steps, or never ends, is False.
    """
    return _Check(root).fits(value, schema, 0)


class _Check:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._results: dict[tuple[int, int], bool] = {}
        """By the ids of a value and a schema. It is False while the pair is being checked."""

    def fits(self, value: object, schema: object, depth: int) -> bool:
        if not isinstance(schema, Mapping):
            return schema is not False
        key = (id(value), id(schema))
        if key in self._results:
            return self._results[key]
        if depth > _MAX_DEPTH or len(self._results) >= _MAX_STEPS:
            return False
        self._results[key] = False
        self._results[key] = self._fits(value, schema, depth + 1)
        return self._results[key]

    def _fits(self, value: object, schema: Mapping[str, Any], depth: int) -> bool:
        target = schema.get("$ref")
        if isinstance(target, str) and not self.fits(value, _find(target, self._root), depth):
            return False
        if not _is_of_type(value, schema.get("type")) or not _is_listed(value, schema):
            return False
        if not _is_within(value, schema):
            return False
        if not all(self.fits(value, option, depth) for option in _as_list(schema.get("allOf"))):
            return False
        for key in ("anyOf", "oneOf"):
            options = _as_list(schema.get(key))
            if key in schema and not any(self.fits(value, option, depth) for option in options):
                return False
        if isinstance(value, dict):
            return self._fits_object(value, schema, depth)
        return not isinstance(value, list) or self._fits_list(value, schema, depth)

    def _fits_object(self, value: dict[str, Any], schema: Mapping[str, Any], depth: int) -> bool:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        if any(key not in value for key in _as_list(schema.get("required"))):
            return False
        others = True if "patternProperties" in schema else schema.get("additionalProperties", True)
        return all(
            self.fits(child, properties.get(key, others), depth) for key, child in value.items()
        )

    def _fits_list(self, value: list[Any], schema: Mapping[str, Any], depth: int) -> bool:
        first = _as_list(schema.get("prefixItems"))
        others = schema.get("items", True)
        return all(
            self.fits(item, first[i] if i < len(first) else others, depth)
            for i, item in enumerate(value)
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
    return not listed or any(is_same_json(value, item) for item in listed)


def _is_within(value: Any, schema: Mapping[str, Any]) -> bool:
    size = len(value) if isinstance(value, str | list) else value
    for key, (types, is_within) in _BOUNDS.items():
        bound: Any = schema.get(key)
        if type(value) in types and type(bound) in _NUMBER and not is_within(size, bound):
            return False
    return True


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
