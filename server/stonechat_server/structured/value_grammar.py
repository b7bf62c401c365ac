"""Writes the grammar of values in other notations than JSON: Python literals, bare keys."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from stonechat_server.parsers.layouts.tag_values import resolve, sole_part
from stonechat_server.parsers.schema_fit import fits
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

_GAP = "(SPACE)?"
_ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "example", "$comment", "deprecated")
)
_KEYS = {
    "string": frozenset(("minLength", "maxLength")),
    "array": frozenset(("items", "minItems", "maxItems")),
    "object": frozenset(("properties", "required", "additionalProperties", "minProperties")),
}
PLAIN_KEY = re.compile(r"[^\s\"'<>{}\[\]:,|\\]+( [^\s\"'<>{}\[\]:,|\\]+)*")
"""Keys that stand bare as the schema has them, such as `$filter` and `user.name`."""
_FREE_KEY = "[A-Za-z_][A-Za-z0-9_-]*"
"""Keys that no schema declares."""


@dataclass(slots=True)
class ValueGrammar:
    """Writes values for one function, and adds the rules that they need to `rules`.

    With a `quote`, keys are bare, and strings stand between two quotes as they are. Without, values
    are Python literals; `true`, `false` and `null` are allowed too. Schemas with keywords that
    these notations do not cover are written as JSON.
    """

    schema: Mapping[str, Any]
    """The schema of the arguments, to which references point."""
    writer: LarkWriter
    rules: dict[str, str]
    name: str
    """Begins the names of the rules."""
    quote: str = ""
    _numbers: Iterator[int] = field(default_factory=count, init=False)

    def value(self, value: Any) -> str:
        """An expression for the values that schema `value` allows."""
        value = sole_part(value)
        if isinstance(value, dict) and "$ref" in value:
            return self._reference(value)
        if value is True or (isinstance(value, dict) and not value.keys() - _ANNOTATIONS):
            return self._any()
        if not isinstance(value, dict):
            return json_value(value)
        keys = value.keys() - _ANNOTATIONS
        if keys - {"type"} in ({"enum"}, {"const"}):
            items = [
                item for item in value.get("enum", [value.get("const")]) if fits(item, value, {})
            ]
            return choice(map(self._constant, items)) if items else self._json(value)
        if keys == {"anyOf"}:
            return choice(self.value(option) for option in value["anyOf"])
        kind = value.get("type")
        if isinstance(kind, list) and keys == {"type"}:
            return choice(self.value({"type": item}) for item in kind)
        if not isinstance(kind, str) or keys - {"type"} - _KEYS.get(kind, frozenset()):
            return self._json_or_quoted(value)
        if isinstance(value.get("items"), list):  # a tuple, in older drafts
            return self._json(value)
        return self._of_type(kind, value)

    def pairs(
        self, schema: Mapping[str, Any], write_key: Callable[[str], str] | None = None
    ) -> str | None:
        """Keys and values in any order, for a plain record's schema; None for another schema.

        `write_key` writes a key and the text up to its value.
        """
        properties = {k: v for k, v in schema.get("properties", {}).items() if v is not False}
        is_closed = schema.get("additionalProperties", False) is False
        required = schema.get("required", [])
        if not is_closed or not set(required) <= properties.keys():
            return None
        fewest = schema.get("minProperties", 0)
        needs_any = fewest == 1 and not required and bool(properties)
        if fewest > len(required) and not needs_any:
            return None
        prefix = self._new_rule()
        pairs: dict[str, str] = {}
        for i, (key, value) in enumerate(properties.items()):
            pairs[key] = f"{prefix}_pair_{i}"
            self.rules[pairs[key]] = sequence((write_key or self._key)(key), self.value(value))
        separator = f'"," {_GAP}'
        return any_order(
            pairs, [required], self.rules, prefix, needs_any=needs_any, separator=separator
        )

    def _text(self, value: Mapping[str, Any]) -> str:
        """An expression for a string of any text, of the length that its schema allows."""
        if self.quote:
            return self._quoted(text_of_length(value))
        bounds = {key: value[key] for key in ("minLength", "maxLength") if key in value}
        limits = f"{{{bounds.get('minLength', 0)},{bounds.get('maxLength', '')}}}"
        whole = json_value({"type": "string", **bounds})
        return choice([whole, rf"/'([^'\\\n]|\\['\"\\nrt]){limits}'/"])

    def _json_or_quoted(self, value: Mapping[str, Any]) -> str:
        """JSON, or a string that `raw_text` knows between quotes."""
        raw = raw_text(value, self.schema) if self.quote else None
        return self._json(value) if raw is None else choice([self._quoted(raw), self._json(value)])

    def _quoted(self, chars: str) -> str:
        """The text of a terminal's expression between quotes."""
        if self.writer.has_special(self.quote):
            quote = self.writer.literal(self.quote)
            return sequence(quote, chars, quote)
        rule = self._new_rule()
        text = lazy(self.rules, rule, without(chars, self.quote), self.quote)
        return sequence(quoted(self.quote), text)

    def _new_rule(self) -> str:
        return f"{self.name}_part_{next(self._numbers)}"

    def _reference(self, value: Mapping[str, Any]) -> str:
        target = resolve({"$ref": value["$ref"]}, self.schema)
        if value.keys() - _ANNOTATIONS - {"$ref"} or not isinstance(target, dict | bool):
            return self._json(value)
        if isinstance(target, dict) and "$ref" in target:
            return self._json(value)
        rule = f"{self.name}_ref_" + "".join(f"{byte:02x}" for byte in value["$ref"].encode())
        if rule not in self.rules:
            self.rules[rule] = ""  # the definition may refer to itself
            self.rules[rule] = self.value(target)
        return rule

    def _json(self, value: Mapping[str, Any]) -> str:
        defs = {key: self.schema[key] for key in ("$defs", "definitions") if key in self.schema}
        return json_value({**value, **defs})

    def _of_type(self, kind: str, value: Mapping[str, Any]) -> str:
        match kind:
            case "string":
                return self._text(value)
            case "boolean":
                return choice(map(self._constant, (True, False)))
            case "null":
                return self._constant(None)
            case "array":
                fewest, most = value.get("minItems", 0), value.get("maxItems")
                if value.get("items") is False:
                    most = 0
                items = "" if most == 0 else self.value(value.get("items", True))
                return self._list(items, fewest, most)
            case "object":
                return self._object(value)
            case _:
                return self._json(value)

    def _constant(self, value: Any) -> str:
        """An expression for one value."""
        if isinstance(value, bool) or value is None:
            has_word = value is None or not self.quote  # Gemma's template writes None
            texts = [json.dumps(value), *([str(value)] if has_word else [])]
            return choice(map(quoted, texts))
        if not isinstance(value, str):
            return json_value({"const": value})
        if self.quote and self.quote not in value:
            quote = self.writer.literal(self.quote)
            return sequence(quote, quoted(value) if value else "", quote)
        texts = [json.dumps(value, ensure_ascii=False)]
        if not self.quote and not set(value) & set("'\\\n"):
            texts.append(f"'{value}'")
        return choice(map(quoted, texts))

    def _list(self, item: str, min_items: int = 0, max_items: int | None = None) -> str:
        if max_items == 0:
            return sequence('"["', _GAP, '"]"')
        rule = self._new_rule()
        self.rules[rule] = item
        most = "" if max_items is None else max_items - 1
        more = f'("," {_GAP} {rule}){{{max(min_items - 1, 0)},{most}}}'
        items = sequence(rule, more, _GAP)
        items = f"({items})?" if min_items == 0 else items
        return sequence('"["', _GAP, items, '"]"')

    def _object(self, value: Mapping[str, Any]) -> str:
        if not value.keys() & _KEYS["object"]:
            value = {**value, "additionalProperties": True}
        extra = value.get("additionalProperties", False)
        is_free = not any(value.get(k) for k in ("properties", "required", "minProperties"))
        if extra is not False and is_free:
            return self._open_object(self.value(extra))
        is_plain = all(map(PLAIN_KEY.fullmatch, value.get("properties", {})))
        pairs = self.pairs(value) if is_plain else None
        return sequence('"{"', _GAP, pairs, _GAP, '"}"') if pairs else self._json(value)

    def _open_object(self, item: str) -> str:
        rule = self._new_rule()
        key = f"/{_FREE_KEY}/" if self.quote else json_value({"type": "string"})
        self.rules[rule] = sequence(key, '":"', _GAP, item)
        return sequence('"{"', _GAP, f'({rule} ("," {_GAP} {rule})* {_GAP})?', '"}"')

    def _key(self, key: str) -> str:
        if self.quote:
            return sequence(quoted(f"{key}:"), _GAP)
        return sequence(choice([quoted(f'"{key}"'), quoted(f"'{key}'")]), '":"', _GAP)

    def _any(self) -> str:
        """Any JSON value in this notation."""
        rule = f"{self.name}_any"
        if rule not in self.rules:
            self.rules[rule] = ""
            constants = [self._constant(item) for item in (True, False, None)]
            number = json_value({"type": "number"})
            options = [
                self._text({}),
                number,
                *constants,
                self._list(rule),
                self._open_object(rule),
            ]
            self.rules[rule] = choice(options)
        return rule
