"""Finds schemas whose values never end, because each needs another such value inside it.

An example is an object that requires a property `next` whose schema is `{"$ref": "#"}`. A schema
counts as endless only if that is proven, so no document is lost.
"""

from typing import Any

from stonechat_models.grammar.schemas.schema_tree import Schema, change_children, definition_name

_MAX_ROUNDS = 8
"""How often all definitions are read. If the last round still finds one that can end, all count as
such."""


def without_endless(schema: Schema) -> Schema | bool:
    """Return a plain schema with `False` in place of all its parts that can never end.

    The argument does not change. The result is `False` if the whole schema can never end.
    """
    definitions = schema.get("$defs")
    if not isinstance(definitions, dict):
        return schema
    ending = _ending(definitions)
    if len(ending) == len(definitions):
        return schema
    return _pruned(schema, ending)


def _ending(definitions: dict[str, Any]) -> set[str]:
    """The names of the definitions that can end. One that needs others can end if those can."""
    ending: set[str] = set()
    names = list(definitions)
    for _ in range(_MAX_ROUNDS):
        names.reverse()  # a definition usually stands before those that it needs
        found = len(ending)
        for name in names:
            if name not in ending and _can_end(definitions[name], ending):
                ending.add(name)
        if len(ending) == found:
            return ending
    return set(definitions)


def _can_end(node: object, ending: set[str]) -> bool:
    if not isinstance(node, dict):
        return True
    name = definition_name(node)
    if name is not None and name not in ending:
        return False
    if not all(_can_end(part, ending) for part in _parts(node, "allOf")):
        return False
    for key in ("anyOf", "oneOf"):
        options = _parts(node, key)
        if options and not any(_can_end(option, ending) for option in options):
            return False
    match node.get("type"):
        case "object" | ["object"]:
            return _object_can_end(node, ending)
        case "array" | ["array"]:
            return _array_can_end(node, ending)
    return True


def _parts(node: Schema, key: str) -> list[Any]:
    parts = node.get(key)
    return parts if isinstance(parts, list) else []


def _object_can_end(node: Schema, ending: set[str]) -> bool:
    properties = node.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    required = [name for name in _parts(node, "required") if isinstance(name, str)]
    if not all(_can_end(properties.get(name), ending) for name in required):
        return False
    fewest = node.get("minProperties", 0)
    needs_others = set(required) - properties.keys() or (not properties and fewest != 0)
    if not needs_others or "patternProperties" in node:
        return True
    return _can_end(node.get("additionalProperties"), ending)


def _array_can_end(node: Schema, ending: set[str]) -> bool:
    fewest = node.get("minItems", 0)
    if not isinstance(fewest, int) or fewest <= 0:
        return True
    first = _parts(node, "prefixItems")[:fewest]
    rest = [node.get("items")] if fewest > len(first) else []
    return all(_can_end(item, ending) for item in (*first, *rest))


def _pruned(node: Schema, ending: set[str]) -> Schema | bool:
    if not _can_end(node, ending):
        return False
    return change_children(node, lambda child, _: _pruned(child, ending))
