"""Writes the grammar of arguments as nested elements (see `ElementLayout`)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from stonechat_server.parsers.element_calls import ITEM
from stonechat_server.parsers.tag_values import allows_text, resolve
from stonechat_server.structured.lark import (
    ANY_TEXT,
    LarkWriter,
    choice,
    json_value,
    quoted,
    sequence,
    without,
)
from stonechat_server.structured.records import read_record, with_definitions

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
    _numbers: Iterator[int] = field(default_factory=count, init=False)

    def write(self) -> str:
        """Elements in the order of the schema, up to the mark of the call's end."""
        mark = self.writer.literal(self.mark)
        return sequence(self._elements(self.schema, 0) or json_value(self.schema), mark)

    def _elements(self, schema: Mapping[str, Any], depth: int) -> str | None:
        record = read_record(schema, lambda key: _KEY.fullmatch(key) is not None)
        if record is None or depth > _MAX_DEPTH:
            return None
        names = {k: self._element(k, v, depth) for k, v in record.properties.items()}
        rows = [
            sequence(*(name if key in keys else f"({name})?" for key, name in names.items()))
            for keys in record.required
        ]
        return choice(row or '""' for row in rows)

    def _element(self, tag: str, schema: Any, depth: int) -> str:
        """Add the rule of one element, and return its name."""
        rule = f"{self.name}_element_{next(self._numbers)}"
        mark = self.writer.literal(self.mark)
        value = self._value(resolve(schema, self.schema), depth + 1)
        self.rules[rule] = sequence(mark, quoted(f"<{tag}>"), value, quoted(f"</{tag}>"))
        return rule

    def _value(self, schema: Any, depth: int) -> str:
        """A value, up to the mark of its element's end."""
        mark = self.writer.literal(self.mark)
        if isinstance(schema, dict) and schema and allows_text(schema):
            return self._text(schema)
        if isinstance(schema, dict) and schema.keys() == {"anyOf"} and depth <= _MAX_DEPTH:
            options = [resolve(option, self.schema) for option in schema["anyOf"]]
            return choice(self._value(option, depth + 1) for option in options)
        inner = None
        if isinstance(schema, dict) and schema.get("type") == "object":
            inner = self._elements(schema, depth)
        elif isinstance(schema, dict) and schema.get("type") == "array" and depth <= _MAX_DEPTH:
            inner = self._items(schema, depth)
        return sequence(inner or json_value(with_definitions(schema, self.schema)), mark)

    def _items(self, schema: Mapping[str, Any], depth: int) -> str | None:
        if schema.keys() - {"type", "items", "minItems", "maxItems"} or "items" not in schema:
            return None
        item = self._element(ITEM, schema["items"], depth)
        return f"({item}){{{schema.get('minItems', 0)},{schema.get('maxItems', '')}}}"

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
