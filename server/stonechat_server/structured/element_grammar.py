"""Writes the grammar of arguments as nested elements (see `ElementLayout`)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from stonechat_server.parsers.element_calls import ITEM
from stonechat_server.parsers.tag_values import allows_text, resolve, sole_part
from stonechat_server.structured.lark import (
    ANY_TEXT,
    LarkWriter,
    choice,
    json_value,
    quoted,
    sequence,
    without,
)
from stonechat_server.structured.records import allows_nothing, read_record, with_definitions

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_MAX_DEPTH = 8


@dataclass(slots=True)
class ElementArguments:
    """Writes the arguments of one function. Values that elements cannot express are JSON."""

    schema: Mapping[str, Any]
    mark: str
    writer: LarkWriter
    rules: dict[str, str]
    name: str
    _references: dict[str, str] = field(default_factory=dict, init=False)
    """The rules of definitions, by the references to them."""
    _numbers: Iterator[int] = field(default_factory=count, init=False)

    def write(self) -> str:
        """Elements in the order of the schema, up to the mark of the call's end."""
        mark = self.writer.literal(self.mark)
        elements = self._elements(self.schema, 0)
        if elements is None:
            whole = json_value(self.schema)
            elements = choice(['""', whole]) if allows_nothing(self.schema) else whole
        return sequence(elements, mark)

    def _elements(self, schema: Mapping[str, Any], depth: int) -> str | None:
        record = read_record(schema, lambda key: _KEY.fullmatch(key) is not None)
        if record is None or depth > _MAX_DEPTH:
            return None
        names = {k: self._element(k, v, depth) for k, v in record.properties.items()}
        prefix = f"{self.name}_record_{next(self._numbers)}"
        rows = record.in_order(names, self.rules, prefix)
        if record.is_partial:
            return choice([rows, json_value(with_definitions(schema, self.schema))])
        return rows

    def _element(self, tag: str, schema: Any, depth: int) -> str:
        """Add the rule of one element, and return its name."""
        rule = f"{self.name}_element_{next(self._numbers)}"
        mark = self.writer.literal(self.mark)
        value = self._value(schema, depth + 1)
        self.rules[rule] = sequence(mark, quoted(f"<{tag}>"), value, quoted(f"</{tag}>"))
        return rule

    def _value(self, schema: Any, depth: int) -> str:
        """A value, up to the mark of its element's end."""
        schema = sole_part(schema)
        target = resolve(schema, self.schema)
        if target is not schema and not (isinstance(target, dict) and "$ref" in target):
            return self._reference(schema["$ref"], target)
        schema = target
        mark = self.writer.literal(self.mark)
        if isinstance(schema, dict) and schema and allows_text(schema):
            return self._text(schema)
        if isinstance(schema, dict) and schema.keys() == {"anyOf"} and depth <= _MAX_DEPTH:
            return choice(self._value(option, depth + 1) for option in schema["anyOf"])
        inner = None
        if isinstance(schema, dict) and schema.get("type") == "object":
            elements = self._elements(schema, depth)
            # The space keeps an endless schema from being an endless fixed text.
            inner = None if elements is None else sequence("(SPACE)?", elements)
        elif isinstance(schema, dict) and schema.get("type") == "array" and depth <= _MAX_DEPTH:
            inner = self._items(schema, depth)
        return sequence(inner or json_value(with_definitions(schema, self.schema)), mark)

    def _reference(self, ref: str, target: Any) -> str:
        """The rule of a definition's values. References share it, as they may be recursive."""
        rule = self._references.get(ref)
        if rule is None:
            rule = self._references[ref] = f"{self.name}_ref_{next(self._numbers)}"
            self.rules[rule] = ""
            self.rules[rule] = self._value(target, 1)
        return rule

    def _items(self, schema: Mapping[str, Any], depth: int) -> str | None:
        if schema.keys() - {"type", "items", "minItems", "maxItems"} or "items" not in schema:
            return None
        items, fewest, most = schema["items"], schema.get("minItems", 0), schema.get("maxItems", "")
        if fewest == 0 and (items is False or most == 0):
            return '""'
        if not isinstance(items, dict):
            return None
        return f"({self._element(ITEM, items, depth)}){{{fewest},{most}}}"

    def _text(self, schema: Mapping[str, Any]) -> str:
        mark = self.writer.literal(self.mark)
        literals = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if literals and all(isinstance(text, str) and self.mark not in text for text in literals):
            return sequence(choice(map(quoted, literals)), mark)
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        has_bounds = (least, most) != (0, "")
        chars = f"/(?s:.{{{least},{most}}})/" if has_bounds else ANY_TEXT
        if self.writer.has_special(self.mark):
            return sequence(chars, mark)
        rule = f"{self.name}_text_{next(self._numbers)}"
        self.rules[rule.upper()] = f"{without(chars, self.mark)} {quoted(self.mark)}"
        self.rules[f"{rule}[lazy]"] = rule.upper()
        return rule
