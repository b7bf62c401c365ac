"""Writes the grammar of arguments between tags: strings verbatim, other values as JSON."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stonechat_server.parsers.tag_values import ValueForm, resolve, text_schema, value_form
from stonechat_server.structured.lark import (
    ANY_TEXT,
    LarkWriter,
    choice,
    json_value,
    quoted,
    sequence,
)
from stonechat_server.tool_formats.layout import TagLayout

_RECORD_KEYS = frozenset(
    ("type", "properties", "required", "title", "description", "$defs", "definitions", "$schema")
)
_KEY = re.compile(r"[^<>\"\s][^<>\"\n]*")


@dataclass(slots=True)
class TagArguments:
    """Writes the arguments of one function.

    The rules that they need are added to `rules`; those of single arguments begin with `name`.
    """

    layout: TagLayout
    writer: LarkWriter
    rules: dict[str, str]
    name: str

    def write(self, schema: Mapping[str, Any]) -> str:
        """Arguments in the order of the schema, or one JSON object if it is not a plain record."""
        if not is_record(schema, lambda key: _KEY.fullmatch(key) is not None):
            return sequence(json_value(schema), quoted("\n"))
        items = []
        required = schema.get("required", [])
        for i, (key, value) in enumerate(schema.get("properties", {}).items()):
            rule = f"{self.name}_argument_{i}"
            options = self._values(resolve(value, schema), schema, rule)
            opening = self.writer.literal(self.layout.before_key + key)
            self.rules[rule] = sequence(opening, choice(options))
            items.append(rule if key in required else f"({rule})?")
        return sequence(*items) or '""'

    def _values(self, value: Any, schema: Mapping[str, Any], rule: str) -> list[str]:
        """What may follow the key, up to and including the closing tag."""
        match value_form(value, self._closing()[0]):
            case ValueForm.TEXT:
                return [self._text(value, rule)]
            case ValueForm.TEXT_OR_NULL:
                return [self._text(text_schema(value), rule), self._json({"type": "null"})]
            case ValueForm.JSON:
                defs = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
                return [self._json({**value, **defs} if isinstance(value, dict) else value)]

    def _json(self, value: Mapping[str, Any] | bool) -> str:
        opening = self.layout.after_json_key or self.layout.after_key
        literal = self.writer.literal
        return sequence(literal(opening), json_value(value), literal(self.layout.after_value))

    def _text(self, value: Mapping[str, Any], rule: str) -> str:
        opening = self.writer.literal(self.layout.after_key)
        literals = value.get("enum", [value["const"]] if "const" in value else None)
        if literals is not None:
            closing = self.writer.literal(self.layout.after_value)
            return sequence(opening, choice(quoted(text) for text in literals), closing)
        bounds = (value.get("minLength", 0), value.get("maxLength"))
        text = self._bounded_text(rule, *bounds) if bounds != (0, None) else self._free_text()
        return sequence(opening, text)

    def _free_text(self) -> str:
        """Any text up to the first closing tag. A line break before the tag may be missing."""
        tag, rest = self._closing()
        if self.writer.has_special(tag):
            return sequence(ANY_TEXT, self.writer.literal(tag + rest))
        self.rules["FREE_TEXT"] = f"{ANY_TEXT} {quoted(tag)}"
        self.rules["free_text[lazy]"] = "FREE_TEXT"
        return sequence("free_text", self.writer.literal(rest))

    def _bounded_text(self, rule: str, min_length: int, max_length: int | None) -> str:
        tag, rest = self._closing()
        before = self.layout.after_value.partition(tag)[0]
        terminal = rule.upper()
        chars = f"/(?s:.{{{min_length},{'' if max_length is None else max_length}}})/"
        if self.writer.has_special(tag):
            return sequence(chars, self.writer.literal(self.layout.after_value))
        inner = re.escape(tag).replace("/", r"\/")
        self.rules[terminal] = f"({chars} & ~/(?s:.*{inner}.*)/) {quoted(before + tag)}"
        self.rules[f"{rule}_text[lazy]"] = terminal
        return sequence(f"{rule}_text", self.writer.literal(rest))

    def _closing(self) -> tuple[str, str]:
        """The closing tag, and the text that the layout has after it."""
        tag = self.layout.after_value.strip()
        return tag, self.layout.after_value.partition(tag)[2]


def is_record(schema: Mapping[str, Any], is_key: Callable[[str], bool]) -> bool:
    """Whether `schema` is a plain record: a fixed set of keys, all of which `is_key` accepts.

    Only then can pairs of key and value express every object that the schema allows.
    """
    extra = schema.keys() - _RECORD_KEYS
    if extra - {"additionalProperties"} or schema.get("additionalProperties", False) is not False:
        return False
    if "properties" not in schema and "additionalProperties" not in schema:
        return False
    properties = schema.get("properties", {})
    if not isinstance(properties, dict) or not all(map(is_key, properties)):
        return False
    return set(schema.get("required", [])) <= properties.keys() and not _has_other_refs(schema)


def _has_other_refs(value: object) -> bool:
    """Whether a `$ref` points anywhere but to the schema's own definitions."""
    if isinstance(value, dict):
        target = value.get("$ref")
        if isinstance(target, str) and not target.startswith(("#/$defs/", "#/definitions/")):
            return True
        return any(_has_other_refs(child) for child in value.values())
    return isinstance(value, list) and any(_has_other_refs(child) for child in value)
