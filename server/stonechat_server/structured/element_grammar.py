"""Writes the grammar of arguments as nested elements (see `ElementLayout`)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from stonechat_server.parsers.layouts.element_calls import ITEM
from stonechat_server.parsers.layouts.tag_values import (
    ValueForm,
    allows_text,
    resolve,
    sole_part,
    text_schema,
    value_form,
)
from stonechat_server.structured.lark import (
    LarkWriter,
    any_order,
    choice,
    json_value,
    lazy,
    quoted,
    sequence,
    text_of_length,
    without,
)
from stonechat_server.structured.raw_text import raw_text
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
        """Elements in any order, up to the mark of the call's end."""
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
        rows = any_order(names, record.required, self.rules, prefix, needs_any=record.needs_any)
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
        match value_form(schema, self.mark):
            case ValueForm.TEXT:
                return self._text(schema)
            case ValueForm.TEXT_OR_NULL:
                return choice([self._text(text_schema(schema)), self._json({"type": "null"})])
        return self._other(schema, depth)

    def _other(self, schema: Any, depth: int) -> str:
        """A value that is not always text: elements, JSON, or a text that can be nothing else."""
        raw = raw_text(schema, self.schema)
        options = [] if raw is None else [self._raw(raw)]
        alternatives = [schema]
        if isinstance(schema, dict) and schema.keys() == {"anyOf"} and depth <= _MAX_DEPTH:
            alternatives = schema["anyOf"]
        may_be_text = allows_text(schema)
        for part in alternatives:
            target = resolve(part, self.schema)
            if allows_text(target) or (may_be_text and _may_be_empty(target)):
                options.append(self._json(part))
            elif part is schema:
                options.append(self._nested(part, depth) or self._json(part))
            else:
                options.append(self._value(part, depth + 1))
        return choice(options)

    def _nested(self, schema: Any, depth: int) -> str | None:
        """An object or a list as elements, if they can express it."""
        inner = None
        if isinstance(schema, dict) and schema.get("type") == "object":
            elements = self._elements(schema, depth)
            # The space keeps an endless schema from being an endless fixed text.
            inner = None if elements is None else sequence("(SPACE)?", elements)
        elif isinstance(schema, dict) and schema.get("type") == "array" and depth <= _MAX_DEPTH:
            inner = self._items(schema, depth)
        return None if inner is None else sequence(inner, self.writer.literal(self.mark))

    def _json(self, schema: Any) -> str:
        value = json_value(with_definitions(schema, self.schema))
        return sequence(value, self.writer.literal(self.mark))

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
        literals = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if literals is not None:
            return sequence(choice(map(quoted, literals)), self.writer.literal(self.mark))
        return self._raw(text_of_length(schema))

    def _raw(self, chars: str) -> str:
        """The text of a terminal's expression, up to the mark."""
        rule = f"{self.name}_text_{next(self._numbers)}"
        if self.writer.has_special(self.mark):
            self.rules[rule.upper()] = chars
            return sequence(rule.upper(), self.writer.literal(self.mark))
        return lazy(self.rules, rule, without(chars, self.mark), self.mark)


def _may_be_empty(schema: object) -> bool:
    """Whether the elements of a value may be missing, so that it looks like an empty text."""
    return isinstance(schema, dict) and not schema.get("required") and not schema.get("minItems")
