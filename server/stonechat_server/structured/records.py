"""Tells whether pairs of key and value can express the arguments of a function.

Schemas are in the plain form (see `argument_schemas`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stonechat_server.structured.lark import json_value, quoted

_KEYWORDS = frozenset(
    (
        *("$defs", "$schema", "additionalProperties", "anyOf", "maxProperties", "minProperties"),
        *("patternProperties", "properties", "required", "type"),
    )
)
_LOCAL = "#/$defs/"
_MAX_ALTERNATIVES = 16


@dataclass(frozen=True, slots=True)
class Record:
    """An object with declared keys, which has all keys of at least one set in `required`.

    With `needs_any`, it has at least one key, whichever it is. Keys that a schema allows but does
    not declare are left out, and so are optional keys that cannot be written: then it `is_partial`.
    """

    properties: Mapping[str, Any]
    required: tuple[frozenset[str], ...]
    needs_any: bool = False
    is_partial: bool = False

    def schemas(self) -> list[dict[str, Any]]:
        """Closed objects: one for each set of required keys."""
        closed = {"type": "object", "properties": self.properties, "additionalProperties": False}
        if self.needs_any:
            closed["minProperties"] = 1
        return [{**closed, "required": list(keys)} for keys in self.required]


def read_record(schema: Mapping[str, Any], is_key: Callable[[str], bool]) -> Record | None:
    """Return the record that `schema` describes, if `is_key` accepts all keys that it may require.

    None: there is no declared key but others are allowed, or the schema demands what a choice of
    keys does not decide.
    """
    properties = {k: v for k, v in schema.get("properties", {}).items() if v is not False}
    if schema.keys() - _KEYWORDS or _has_other_refs(schema):
        return None
    if not properties and _is_open(schema):
        return None
    written = {key: value for key, value in properties.items() if is_key(key)}
    needs_any = _needs_any(schema, len(written))
    required = (frozenset[str](),) if needs_any else _alternatives(schema, written.keys())
    if required is None or not all(keys <= written.keys() for keys in required):
        return None
    if schema.get("maxProperties", len(written)) < len(written):
        return None
    is_partial = len(written) < len(properties)
    if is_partial and not written:
        return None
    return Record(written, required, needs_any, is_partial)


def allows_nothing(schema: Mapping[str, Any]) -> bool:
    """Whether the schema surely allows an object without keys."""
    others = {"anyOf", "minProperties"} | (schema.keys() - _KEYWORDS)
    return others.isdisjoint(schema) and not schema.get("required")


def json_arguments(schema: Mapping[str, Any]) -> str:
    """An expression for the arguments as one JSON object: exactly `{}` if there can be none."""
    record = read_record(schema, lambda key: True)
    return json_value(schema) if record is None or record.properties else quoted("{}")


def with_definitions(value: Any, schema: Mapping[str, Any]) -> Any:
    """A value's schema, with the definitions of `schema` that it refers to."""
    if not isinstance(value, dict):
        return value
    definitions, needed, pending = schema.get("$defs", {}), {}, [value]
    while pending:
        for ref in _refs(pending.pop()):
            name = ref.removeprefix(_LOCAL)
            if name in definitions and name not in needed:
                needed[name] = definitions[name]
                pending.append(needed[name])
    return {**value, "$defs": needed} if needed else value


def _needs_any(schema: Mapping[str, Any], num_keys: int) -> bool:
    """Whether at least one of many keys must be present, and nothing else is demanded."""
    is_only_demand = "anyOf" not in schema and not schema.get("required")
    return is_only_demand and schema.get("minProperties") == 1 and num_keys > _MAX_ALTERNATIVES


def _is_open(schema: Mapping[str, Any]) -> bool:
    """Whether undeclared keys are allowed. Declaring keys forbids others, unless it is said."""
    others = schema.get("additionalProperties", "properties" not in schema)
    return others is not False or "patternProperties" in schema


def _alternatives(
    schema: Mapping[str, Any], names: Collection[str]
) -> tuple[frozenset[str], ...] | None:
    """The sets of keys one of which must be present, or None if keys do not decide it."""
    options = schema.get("anyOf", [{}])
    if not all(isinstance(o, dict) and not o.keys() - {"required", "type"} for o in options):
        return None
    if any(option.get("type", "object") != "object" for option in options):
        return None
    base, fewest = frozenset(schema.get("required", ())), schema.get("minProperties", 0)
    found: list[frozenset[str]] = []
    for option in options:
        keys = base.union(option.get("required", ()))
        if len(keys) >= fewest:
            found.append(keys)
        elif len(keys) + 1 == fewest:
            found += [keys | {name} for name in names if name not in keys]
        else:
            return None
    return tuple(dict.fromkeys(found)) if 0 < len(found) <= _MAX_ALTERNATIVES else None


def _has_other_refs(value: object) -> bool:
    """Whether a `$ref` points anywhere but to the schema's own definitions."""
    return any(not ref.startswith(_LOCAL) for ref in _refs(value))


def _refs(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for child in value:
            yield from _refs(child)
