"""The grammar of arguments that stand between tags: strings as they are, other values as JSON."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stonechat_server.lark import ANY_TEXT, LarkWriter, choice, json_value, quoted, sequence
from stonechat_server.parsers.format import TagLayout
from stonechat_server.parsers.tag_values import ValueForm, resolve, text_schema, value_form

_RECORD_KEYS = frozenset(
    ("type", "properties", "required", "title", "description", "$defs", "definitions", "$schema")
)
_KEY = re.compile(r"[^<>\"\s][^<>\"\n]*")


@dataclass(slots=True)
class TagArguments:
    """Writes the arguments of one function; further rules, named after `name`, go to `rules`."""

    layout: TagLayout
    writer: LarkWriter
    rules: dict[str, str]
    name: str

    def write(self, schema: Mapping[str, Any]) -> str:
        """In the order of the schema; or one JSON object, where keys cannot say it all."""
        if not is_record(schema, lambda key: _KEY.fullmatch(key) is not None):
            return sequence(json_value(schema), quoted("\n"))
        items = []
        required = schema.get("required", [])
        for i, (key, value) in enumerate(schema.get("properties", {}).items()):
            rule = f"{self.name}_argument_{i}"
            opening = self.layout.before_key + key + self.layout.after_key
            self.rules[rule] = sequence(
                self.writer.literal(opening), self._value(resolve(value, schema), schema, rule)
            )
            items.append(rule if key in required else f"({rule})?")
        return sequence(*items) or '""'

    def _value(self, value: Any, schema: Mapping[str, Any], rule: str) -> str:
        """The value with its closing tag."""
        closing = self.writer.literal(self.layout.after_value)
        match value_form(value, self._closing()[0]):
            case ValueForm.TEXT:
                return self._text(value, closing, rule)
            case ValueForm.TEXT_OR_NULL:
                return self._text(text_schema(value), closing, rule, ["null"])
            case ValueForm.JSON:
                defs = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
                if isinstance(value, dict):
                    value = {**value, **defs}
                return sequence(json_value(value), closing)

    def _text(
        self, value: Mapping[str, Any], closing: str, rule: str, more: list[str] | None = None
    ) -> str:
        literals = value.get("enum", [value["const"]] if "const" in value else None)
        if literals is not None:
            texts = (quoted(text) for text in [*literals, *(more or ())])
            return sequence(choice(texts), closing)
        bounds = (value.get("minLength", 0), value.get("maxLength"))
        text = self._bounded(rule, *bounds) if bounds != (0, None) else self._free()
        return choice([text, *(sequence(quoted(t), closing) for t in more or ())])

    def _free(self) -> str:
        """Any text without the closing tag, before which a line break may be left out."""
        tag, rest = self._closing()
        if self.writer.has_special(tag):
            return sequence(ANY_TEXT, self.writer.literal(tag + rest))
        self.rules["FREE_TEXT"] = f"{ANY_TEXT} {quoted(tag)}"
        self.rules["free_text[lazy]"] = "FREE_TEXT"
        return sequence("free_text", self.writer.literal(rest))

    def _bounded(self, rule: str, least: int, most: int | None) -> str:
        tag, rest = self._closing()
        before = self.layout.after_value.partition(tag)[0]
        terminal = rule.upper()
        chars = f"/(?s:.{{{least},{'' if most is None else most}}})/"
        if self.writer.has_special(tag):
            return sequence(chars, self.writer.literal(self.layout.after_value))
        inner = re.escape(tag).replace("/", r"\/")
        self.rules[terminal] = f"({chars} & ~/(?s:.*{inner}.*)/) {quoted(before + tag)}"
        self.rules[f"{rule}_text[lazy]"] = terminal
        return sequence(f"{rule}_text", self.writer.literal(rest))

    def _closing(self) -> tuple[str, str]:
        """The closing tag, and what the layout has after it."""
        tag = self.layout.after_value.strip()
        return tag, self.layout.after_value.partition(tag)[2]


def is_record(schema: Mapping[str, Any], is_key: Callable[[str], bool]) -> bool:
    """Whether a list of keys with values can say all that the schema of an object says."""
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
    """Whether a reference leads to anything but the schema's own definitions."""
    if isinstance(value, dict):
        target = value.get("$ref")
        if isinstance(target, str) and not target.startswith(("#/$defs/", "#/definitions/")):
            return True
        return any(_has_other_refs(child) for child in value.values())
    return isinstance(value, list) and any(_has_other_refs(child) for child in value)
