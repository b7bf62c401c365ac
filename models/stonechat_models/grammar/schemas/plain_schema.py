"""Writes a JSON schema in a plain form that allows the same documents.

In the plain form:

- What Go and PHP write for an empty object is one.
- Keywords that constrain nothing are gone (see `annotations`).
- Each reference points to an entry of the root's `$defs`. References by `$id`, `$anchor` or a URL,
  and references that lead nowhere, stay as they are.
- Counts, such as `maxItems`, are integers.
- A list of one part in `allOf`, `anyOf` or `oneOf` is that part.
- Parts of `allOf` that only require keys stand beside it: `required`, or `anyOf` of `required`.
- `oneOf` is `anyOf` where its options exclude each other, or only require keys.
- The root is not a mere reference.
"""

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from stonechat_models.grammar.schemas.annotations import without_annotations
from stonechat_models.grammar.schemas.exclusive import exclude_each_other, exclusive_keys
from stonechat_models.grammar.schemas.limits import check_size
from stonechat_models.grammar.schemas.schema_tree import (
    COUNT_KEYS,
    DEFINITIONS,
    Path,
    Schema,
    change_children,
    children,
    definition_name,
    with_objects,
)

_DYNAMIC = frozenset(("$dynamicRef", "$recursiveRef"))
_MAX_HOPS = 8


def plain_schema(schema: Schema) -> Schema:
    """Return the plain form. The argument does not change.

    Raises `GrammarError` for a schema that is too large.
    """
    check_size(schema)
    schema, keep_ids = _with_definitions(with_objects(schema))
    schema = _without_reference(_flatten(without_annotations(schema, keep_ids=keep_ids)))
    schema, _ = _with_definitions(schema)  # without those that the root has replaced
    return _with_any_of(schema, _definitions(schema))


def find(schema: Schema, ref: object) -> Path | None:
    """The path to which `ref` leads, or None if it is no JSON pointer to a schema in `schema`."""
    if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
        return None
    value: Any = schema
    path: list[str | int] = []
    for part in unquote(ref).split("/")[1:]:
        name: str | int = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list):
            if not part.isdecimal() or int(part) >= len(value):
                return None
            name = int(part)
        elif not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
        path.append(name)
    return tuple(path) if isinstance(value, dict | bool) else None


def _with_definitions(schema: Schema) -> tuple[Schema, bool]:
    """The schema with all targets of references in `$defs`, and whether ids are needed instead."""
    targets = _targets(schema)
    return (schema, True) if targets is None else (_Definitions(schema, targets).collect(), False)


def _targets(schema: Schema) -> dict[str, Path] | None:
    """The path of each reference, or None if there are references of another kind."""
    targets: dict[str, Path] = {}
    pending, seen = [schema], {id(schema)}
    while pending:
        node = pending.pop()
        if not _DYNAMIC.isdisjoint(node):
            return None
        found: list[Any] = children(node)
        if "$ref" in node:
            path = find(schema, node["$ref"])
            if path is None:
                return None
            targets[node["$ref"]] = path
            found.append(_at(schema, path))  # it may stand under an unknown keyword
        for child in reversed(found):
            if isinstance(child, dict) and id(child) not in seen:
                seen.add(id(child))
                pending.append(child)
    return targets


def _at(schema: Schema, path: Path) -> Any:
    value: Any = schema
    for name in path:
        value = value[name]
    return value


@dataclass(slots=True)
class _Definitions:
    """Moves the targets of all references to `$defs`. Each is moved once, so nothing grows."""

    schema: Schema
    targets: dict[str, Path]
    names: dict[Path, str] = field(default_factory=dict, init=False)
    numbers: dict[str, int] = field(default_factory=dict, init=False)
    taken: set[str] = field(default_factory=set, init=False)

    def collect(self) -> Schema:
        for path in self.targets.values():
            if path not in self.names:
                self.names[path] = self._new_name(path)
        root = self._place(self.schema, ())
        definitions = {
            name: self._rewrite(target, path)
            if isinstance(target := _at(self.schema, path), dict)
            else target
            for path, name in self.names.items()
        }
        if "$schema" in self.schema:
            root = {"$schema": self.schema["$schema"], **root}
        return {**root, "$defs": definitions} if definitions else root

    def _new_name(self, path: Path) -> str:
        base = re.sub(r"[^A-Za-z0-9.-]", "_", str(path[-1])) if path else "root"
        name, number = base, self.numbers.get(base, 1)
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.numbers[base] = number
        self.taken.add(name)
        return name

    def _place(self, node: Schema, path: Path) -> Schema:
        if path in self.names:
            return {"$ref": DEFINITIONS + self.names[path]}
        return self._rewrite(node, path)

    def _rewrite(self, node: Schema, path: Path) -> Schema:
        kept = {k: v for k, v in node.items() if k not in ("$defs", "definitions", "$schema")}
        if "$ref" in kept:
            kept["$ref"] = DEFINITIONS + self.names[self.targets[kept["$ref"]]]
        return change_children(kept, lambda child, step: self._place(child, path + step))


def _flatten(node: Schema) -> Schema:
    node = change_children(node, lambda child, _: _flatten(child))
    for key in COUNT_KEYS & node.keys():
        if isinstance(node[key], float) and node[key].is_integer():
            node[key] = int(node[key])
    node = _with_requirements(node)
    for key in ("allOf", "anyOf", "oneOf"):
        match node.get(key):
            case [dict() as part]:
                node = _join(node, key, part)
    return node


def _with_requirements(node: Schema) -> Schema:
    """`node` without the parts of `allOf` that only require keys, which stand beside it instead."""
    parts = node.get("allOf")
    names = node.get("required", [])
    if not isinstance(parts, list) or not isinstance(names, list):
        return node
    if not all(isinstance(name, str) for name in names):
        return node
    rest: list[Any] = []
    for part in parts:
        alternatives = part.get("anyOf") if isinstance(part, dict) else None
        if _only_requires(part, node):
            node = {**node, "required": [*node.get("required", ()), *part.get("required", ())]}
        elif (
            "anyOf" not in node
            and isinstance(alternatives, list)
            and not part.keys() - {"anyOf", "type"}
            and part.get("type", node.get("type")) == node.get("type")
            and all(_only_requires(option, node) for option in alternatives)
        ):
            node = {**node, "anyOf": alternatives}
        else:
            rest.append(part)
    if len(rest) == len(parts):
        return node
    if "required" in node:
        node["required"] = list(dict.fromkeys(node["required"]))
    others = {key: value for key, value in node.items() if key != "allOf"}
    return {**others, "allOf": rest} if rest else others


def _only_requires(part: Any, node: Schema) -> bool:
    """Whether the part does nothing but require keys of the object that `node` describes."""
    if not isinstance(part, dict) or part.keys() - {"required", "type"}:
        return False
    names = part.get("required", [])
    is_same = part.get("type", node.get("type")) == node.get("type")
    return is_same and isinstance(names, list) and all(isinstance(name, str) for name in names)


def _join(node: Schema, key: str, part: Schema) -> Schema:
    """`node` with `part` in place of its keyword `key`, if nothing but a type stands beside it."""
    rest = {name: value for name, value in node.items() if name != key}
    if rest.keys() - {"type", "$defs", "$schema"}:
        return node
    if "type" in rest and rest["type"] != part.get("type", rest["type"]):
        return node
    return {**part, **rest}


def _without_reference(root: Schema) -> Schema:
    for _ in range(_MAX_HOPS):
        name = definition_name(root)
        target = None if name is None else _definitions(root).get(name)
        if not isinstance(target, dict):
            break
        root = _join(root, "$ref", target)
    return root


def _with_any_of(node: Schema, definitions: dict[str, Any]) -> Schema:
    options = node.get("oneOf") if "anyOf" not in node else None
    if isinstance(options, list):
        if not exclude_each_other(options, definitions):
            options = _required_apart(node, options)
        if options is not None:
            node = {("anyOf" if k == "oneOf" else k): v for k, v in node.items()}
            node["anyOf"] = options
    return change_children(node, lambda child, _: _with_any_of(child, definitions))


def _required_apart(node: Schema, options: list[Any]) -> list[Any] | None:
    """Options that exclude each other, in place of some that only require keys of an object."""
    if node.get("type") != "object" or not all(_only_requires(o, node) for o in options):
        return None
    return exclusive_keys([frozenset(option.get("required", ())) for option in options])


def _definitions(schema: Schema) -> dict[str, Any]:
    found = schema.get("$defs")
    return found if isinstance(found, dict) else {}
