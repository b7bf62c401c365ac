"""Leaves out of a JSON schema what a grammar cannot enforce, and names it.

The relaxed schema allows every document that the original allows, and more. What is known to be
out of reach goes first: keywords, malformed values, patterns with look-around. If the schema still
cannot be enforced, its parts are tried one by one, and the first keyword whose absence helps goes.
As a last resort only the names and types of the root's properties remain.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stonechat_models.errors import CostlyGrammarError
from stonechat_models.grammar.schemas.annotations import IDENTIFIERS, has_no_effect
from stonechat_models.grammar.schemas.json_schema import MAX_PROPERTIES
from stonechat_models.grammar.schemas.keywords import is_schema, is_type, is_well_formed
from stonechat_models.grammar.schemas.limits import MAX_DEPTH
from stonechat_models.grammar.schemas.plain_schema import find
from stonechat_models.grammar.schemas.schema_tree import (
    SCHEMA_LIST_KEYS,
    SCHEMA_MAP_KEYS,
    Path,
    Schema,
    change_children,
    with_objects,
)

MAX_CHECKS = 256
MAX_SECONDS = 5.0
"""For the checks of one schema. After them, the last resort is taken."""

_LOOK_AROUND = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?<?[=!]|\\[1-9bBk])")
_MAX_PATH = MAX_DEPTH - 4


_SUSPECTS = (
    *("pattern", "oneOf", "patternProperties", "allOf", "anyOf", "multipleOf", "maxProperties"),
    *("minProperties", "maxItems", "minItems", "maxLength", "minLength", "format"),
    *("exclusiveMinimum", "exclusiveMaximum", "minimum", "maximum", "additionalProperties"),
    *("required", "const", "enum", "prefixItems", "additionalItems", "items", "properties"),
)
"""The order in which keywords are left out of a part that cannot be enforced."""

_OPENED: dict[str, Schema] = {
    "properties": {"additionalProperties": True},
    "patternProperties": {"additionalProperties": True},
    "prefixItems": {"items": True},
}
"""What else changes where a keyword is left out that exempts values from another."""


def relax_schema(
    schema: Schema, is_enforceable: Callable[[Schema], bool]
) -> tuple[Schema, list[Path]]:
    """Return a schema that can be enforced, and the path of each value that it leaves out.

    An empty path stands for the whole schema. The argument does not change. `is_enforceable` may
    raise `CostlyGrammarError`: then the last resort is taken.
    """
    schema = with_objects(schema)
    relaxation = _Relaxation(schema, is_enforceable, time.monotonic() + MAX_SECONDS)
    try:
        if is_enforceable(schema):
            return schema, []
        relaxed = relaxation.run()
    except (_TooCostlyError, CostlyGrammarError):
        relaxed = None
    if relaxed is not None:
        return relaxed, _outermost(relaxation.left_out)
    skeleton = _skeleton(schema)
    try:
        fits = is_enforceable(skeleton)
    except CostlyGrammarError:
        fits = False
    return skeleton if fits else {"type": "object"}, [()]


class _TooCostlyError(Exception):
    """No more checks are allowed."""


@dataclass(slots=True)
class _Relaxation:
    root: Schema
    is_enforceable: Callable[[Schema], bool]
    deadline: float
    left_out: list[Path] = field(default_factory=list, init=False)
    num_checks: int = field(default=0, init=False)
    patterns: dict[str, bool] = field(default_factory=dict, init=False)

    def run(self) -> Schema | None:
        """Return the relaxed schema, or None if no part of it is to blame."""
        schema = self._trim(self.root, ())
        if not self._check(schema):
            schema = self._repair(self._with_definitions(schema), ())
        if not self._check(schema):
            schema = self._without_one_of(schema, ())
            return schema if self._check(schema) else None
        return schema

    def _with_definitions(self, schema: Schema) -> Schema:
        """Repair the definitions, which count only where a reference leads to them."""
        keys = {"$defs", "definitions"} & schema.keys()
        definitions = change_children(
            {key: schema[key] for key in keys}, lambda child, path: self._repair(child, path)
        )
        return {**schema, **definitions}

    def _check(self, schema: Schema) -> bool:
        self.num_checks += 1
        if self.num_checks > MAX_CHECKS or time.monotonic() > self.deadline:
            raise _TooCostlyError
        return self.is_enforceable(schema)

    def _trim(self, node: Schema, path: Path) -> Schema:
        """Leave out what is known to be malformed or unsupported."""
        if len(path) > _MAX_PATH:
            self.left_out.append(path)
            return {}
        kept: Schema = {}
        opened: Schema = {}
        for key, value in node.items():
            if key in IDENTIFIERS or has_no_effect(key, value, node):
                if isinstance(value, dict):  # a reference may lead into it
                    kept[key] = value
            elif self._is_usable(key, value):
                kept[key] = self._with_schemas(key, value, path)
            else:
                self.left_out.append((*path, key))
                opened.update(_OPENED.get(key, {}))
        return change_children(
            {**kept, **opened}, lambda child, step: self._trim(child, path + step)
        )

    def _is_usable(self, key: str, value: Any) -> bool:
        if key == "$ref":
            return find(self.root, value) is not None
        if key == "pattern":
            return isinstance(value, str) and self._is_usable_pattern(value)
        return is_well_formed(key, value)

    def _is_usable_pattern(self, pattern: str) -> bool:
        if not _LOOK_AROUND.search(pattern):
            return True
        if pattern not in self.patterns:
            self.patterns[pattern] = self._check({"type": "string", "pattern": pattern})
        return self.patterns[pattern]

    def _with_schemas(self, key: str, value: Any, path: Path) -> Any:
        """The value with `{}` in place of each malformed schema in it."""
        items: list[tuple[str | int, Any]]
        if key in SCHEMA_MAP_KEYS:
            items = list(value.items())
        elif key in SCHEMA_LIST_KEYS and isinstance(value, list):
            items = list(enumerate(value))
        else:
            return value
        bad = {name for name, child in items if not is_schema(child)}
        self.left_out += [(*path, key, name) for name in bad]
        if isinstance(value, dict):
            return {name: {} if name in bad else child for name, child in items}
        return [{} if name in bad else child for name, child in items]

    def _repair(self, node: Schema, path: Path) -> Schema:
        """Leave out what keeps this part from being enforced. References in it do not count."""
        if self._check(_alone(node)):
            return node
        node = change_children(node, lambda child, step: self._repair(child, path + step))
        if self._check(_alone(node)):
            return node
        for key in _SUSPECTS:
            if key in node and (path or key != "properties"):
                trial = _without(node, key)
                if self._check(_alone(trial)):
                    self.left_out.append((*path, key))
                    return trial
        if not path:
            return node
        self.left_out.append(path)
        return {key: node[key] for key in ("type", "$defs", "definitions") if key in node}

    def _without_one_of(self, node: Schema, path: Path) -> Schema:
        if "oneOf" in node and "anyOf" not in node:
            self.left_out.append((*path, "oneOf"))
            node = _without(node, "oneOf")
        return change_children(node, lambda child, step: self._without_one_of(child, path + step))


def _without(node: Schema, key: str) -> Schema:
    """The node without a keyword. `oneOf` becomes `anyOf`, which allows more."""
    rest = {name: value for name, value in node.items() if name != key}
    rest.update(_OPENED.get(key, {}))
    if key == "oneOf" and "anyOf" not in node:
        rest["anyOf"] = node[key]
    return rest


def _alone(node: Schema) -> Schema:
    """The node without references. An option that is one could exclude another: `anyOf`."""
    options = node.get("oneOf")
    if isinstance(options, list) and any("$ref" in o for o in options if isinstance(o, dict)):
        node = _without(node, "oneOf")
    kept = {name: value for name, value in node.items() if name not in ("$ref", "oneOf")}
    if "oneOf" in node:
        kept["oneOf"] = node["oneOf"]
    return change_children(kept, lambda child, _: _alone(child))


def _outermost(paths: list[Path]) -> list[Path]:
    """The paths in order, without those inside another."""
    unique = list(dict.fromkeys(paths))
    known = set(unique)
    return [p for p in unique if not any(p[:i] in known for i in range(len(p)))]


def _skeleton(schema: Schema) -> Schema:
    """An object schema with the same names, whose properties keep nothing but their types."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or len(properties) > MAX_PROPERTIES:
        return {"type": "object"}
    types = {
        name: {"type": value["type"]}
        if isinstance(value, dict) and is_type(value.get("type"))
        else {}
        for name, value in properties.items()
    }
    names = required if isinstance(required, list) else []
    return {
        "type": "object",
        "properties": types,
        "required": [name for name in names if isinstance(name, str) and name in types],
        "additionalProperties": schema.get("additionalProperties") is not False,
    }
