"""Tells whether the options of `oneOf` exclude each other: then `anyOf` means the same.

They do if all list their values, each another one, or if their types differ, and the objects among
them have a required key, such as `kind`, with other strings in each. Options that only require keys
are made to exclude each other: each forbids what another requires.
"""

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any

from stonechat_models.grammar.schemas.schema_tree import Schema, definition_name

_MAX_HOPS = 8
_MAX_OPTIONS = 64
"""More take the grammar's compiler seconds, and its memory."""


def exclude_each_other(options: list[Any], definitions: Mapping[str, Any]) -> bool:
    """Return whether a document surely matches at most one option."""
    resolved = [_resolve(option, definitions) for option in options]
    listed = [_listed(option) for option in resolved]
    if all(values is not None for values in listed):
        return max(Counter(v for values in listed for v in values or ()).values(), default=0) < 2
    types = Counter(_type(option) for option in resolved)
    num_objects = types.pop("object", 0)
    if None in types or any(count > 1 for count in types.values()):
        return False
    if {"integer", "number"} <= types.keys():
        return False
    return num_objects < 2 or _differ([o for o in resolved if _type(o) == "object"])


def exclusive_keys(required: list[frozenset[str]]) -> list[Schema] | None:
    """Objects that have all keys of exactly one set; None if that takes too many options.

    The options are for `anyOf`. None also stands for sets that leave no object.
    """
    if max(map(len, required), default=0) > _MAX_OPTIONS:
        return None
    found: list[Schema] = []
    for i, keys in enumerate(required):
        ways: set[frozenset[str]] = {frozenset()}  # keys that are absent
        for j, others in enumerate(required):
            if i != j:
                ways = {way | {key} for way in ways for key in others - keys}
            if len(ways) > _MAX_OPTIONS:
                return None
        found += [
            {
                "required": sorted(keys),
                "properties": dict.fromkeys(absent, False),
                "additionalProperties": True,
            }
            for absent in sorted(map(sorted, ways))
        ]
    return found if 0 < len(found) <= _MAX_OPTIONS else None


def _resolve(option: Any, definitions: Mapping[str, Any]) -> Schema:
    for _ in range(_MAX_HOPS):
        if (name := definition_name(option)) is None:
            break
        option = definitions.get(name)
    return option if isinstance(option, dict) else {}


def _listed(option: Schema) -> set[Hashable] | None:
    """The values that a schema lists, in a form in which equal ones are the same."""
    values = [option["const"]] if "const" in option else option.get("enum")
    return set(map(_comparable, values)) if isinstance(values, list) else None


def _comparable(value: Any) -> Hashable:
    if isinstance(value, dict):
        return frozenset((name, _comparable(item)) for name, item in value.items())
    if isinstance(value, list):
        return tuple(map(_comparable, value))
    return (type(value) is bool, value)  # True is not 1


def _type(option: Schema) -> str | None:
    name = option.get("type")
    return name if isinstance(name, str) else None


def _differ(options: list[Schema]) -> bool:
    """Return whether a key that all objects require has other strings in each."""
    common = set.intersection(*(_required(option) for option in options))
    for key in common:
        texts = [_texts(option.get("properties", {}).get(key)) for option in options]
        if all(texts) and len(set().union(*texts)) == sum(map(len, texts)):
            return True
    return False


def _required(option: Schema) -> set[str]:
    names = option.get("required", [])
    if not isinstance(names, list) or not isinstance(option.get("properties"), dict):
        return set()
    return {name for name in names if isinstance(name, str)}


def _texts(value: Any) -> set[str]:
    """The strings that a schema lists; empty if it does not list strings only."""
    if not isinstance(value, dict):
        return set()
    listed = [value["const"]] if "const" in value else value.get("enum")
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        return set()
    return set(listed)
