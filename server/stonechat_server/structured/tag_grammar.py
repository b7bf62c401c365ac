"""Writes the grammar of arguments between tags: strings verbatim, other values as JSON."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stonechat_server.parsers.layouts.tag_values import ValueForm, resolve, text_schema, value_form
from stonechat_server.structured.lark import (
    ANY_TEXT,
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
from stonechat_server.structured.raw_text import is_open, raw_text
from stonechat_server.structured.records import allows_nothing, read_record, with_definitions
from stonechat_server.tool_formats.layout import CDATA_END, CDATA_START, TagLayout

_NO_CDATA = r"/(([^<]|<[^!])(?s:.*)|<)?/"
"""Text that does not begin like `CDATA_START`."""
_PYTHON_WORDS = {"boolean": ["True", "False"], "null": ["None"]}
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
        """Arguments in any order.

        One JSON object if it is not a plain record; either one if tags cannot express some keys.
        """
        record = read_record(schema, lambda key: _KEY.fullmatch(key) is not None)
        if record is None:
            whole = sequence(json_value(schema), "(SPACE)?")
            return choice(['""', whole]) if allows_nothing(schema) else whole
        names = {
            key: self._argument(i, key, value, schema)
            for i, (key, value) in enumerate(record.properties.items())
        }
        rows = any_order(
            names, record.required, self.rules, f"{self.name}_from", needs_any=record.needs_any
        )
        if record.is_partial:
            return choice([rows, sequence(json_value(schema), "(SPACE)?")])
        return rows

    def _argument(self, index: int, key: str, value: Any, schema: Mapping[str, Any]) -> str:
        """Add the rule of one argument, and return its name."""
        rule = f"{self.name}_argument_{index}"
        options = self._values(resolve(value, schema), schema, rule)
        opening = sequence(self.writer.spaced(self.layout.before_key), quoted(key))
        self.rules[rule] = sequence(opening, choice(options))
        return rule

    def _values(self, value: Any, schema: Mapping[str, Any], rule: str) -> list[str]:
        """What may follow the key, up to and including the closing tag."""
        match value_form(value, self._closing()[0]):
            case ValueForm.TEXT:
                return [self._text(value, rule)]
            case ValueForm.TEXT_OR_NULL:
                return [self._text(text_schema(value), rule), self._json({"type": "null"})]
            case ValueForm.JSON:
                raw = raw_text(value, schema)
                written = self._json(with_definitions(value, schema))
                return [written] if raw is None else [self._raw(raw), written]

    def _json(self, value: Mapping[str, Any] | bool) -> str:
        openings = self.layout.after_json_keys or (self.layout.after_key,)
        spaced = self.writer.spaced
        opening = choice(map(spaced, openings)) if len(openings) > 1 else spaced(openings[0])
        written = [json_value(value)]
        if not self.layout.after_json_keys:
            written += map(quoted, _python_words(value))
        return sequence(opening, choice(written), spaced(self.layout.after_value))

    def _text(self, value: Mapping[str, Any], rule: str) -> str:
        literals = value.get("enum", [value["const"]] if "const" in value else None)
        if literals is not None:
            return self._listed(literals)
        if (chars := text_of_length(value)) != ANY_TEXT:
            return sequence(self._opening("BREAK"), self._bounded_text(rule, chars))
        return sequence(self._opening(""), self._free_text())

    def _listed(self, literals: Sequence[str]) -> str:
        """One of these texts. One line break next to each tag does not count."""
        first = any(text.startswith("\n") for text in literals)
        last = any(text.endswith("\n") for text in literals)
        opening = self._opening("BREAK" if first else "(BREAK)?")
        tag, rest = self._closing()
        has_break = self.layout.after_value.startswith("\n")
        line_break = ("BREAK" if last else "(BREAK)?") if has_break else ""
        closing = sequence(line_break, self.writer.spaced(tag + rest))
        return sequence(opening, choice(map(quoted, literals)), closing)

    def _raw(self, text: str) -> str:
        """The text of a string that stands raw where JSON may stand too. Equal ones share rules."""
        tag, rest = self._closing()
        before = self.layout.after_value.partition(tag)[0]
        name = "raw_" + hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        if self.writer.has_special(tag):
            self.rules[name.upper()] = text
            end = sequence("(BREAK)?" if before else "", self.writer.spaced(tag + rest))
            return sequence(self._opening("(BREAK)?"), name.upper(), end)
        text = without(text, tag) if is_open(text) else text
        raw = lazy(self.rules, name, text, before + tag)
        return sequence(self._opening("(BREAK)?"), raw, self.writer.spaced(rest))

    def _opening(self, line_break: str) -> str:
        """The text up to a value; `line_break` stands for the one next to the value."""
        self.rules["BREAK"] = quoted("\n")
        after_key = self.layout.after_key
        text = self.writer.spaced(after_key.rstrip("\n"))
        return sequence(text, line_break if after_key.endswith("\n") else "")

    def _free_text(self) -> str:
        """Any text up to the first closing tag. Line breaks next to the tags may be missing."""
        tag, rest = self._closing()
        if self.writer.has_special(tag):
            return sequence(ANY_TEXT, self.writer.spaced(tag + rest))
        chars = _NO_CDATA if self.layout.has_cdata else ANY_TEXT
        text = sequence(lazy(self.rules, "free_text", chars, tag), self.writer.spaced(rest))
        return choice([text, self._cdata()]) if self.layout.has_cdata else text

    def _cdata(self) -> str:
        text = lazy(self.rules, "cdata_text", ANY_TEXT, CDATA_END)
        return sequence(quoted(CDATA_START), text, self.writer.spaced(self.layout.after_value))

    def _bounded_text(self, rule: str, chars: str) -> str:
        tag, rest = self._closing()
        before = self.layout.after_value.partition(tag)[0]
        if self.writer.has_special(tag):
            closing = sequence("BREAK" if before else "", self.writer.spaced(tag + rest))
            return sequence(chars, closing)
        text = lazy(self.rules, f"{rule}_text", without(chars, tag), before + tag)
        return sequence(text, self.writer.spaced(rest))

    def _closing(self) -> tuple[str, str]:
        """The closing tag, and the text that the layout has after it."""
        tag = self.layout.after_value.strip()
        return tag, self.layout.after_value.partition(tag)[2]


def _python_words(value: Mapping[str, Any] | bool) -> list[str]:
    """Python's words for truth values and null, if they are values of the schema.

    Templates that write values with Jinja's `string` show them so.
    """
    options = value.get("anyOf", [value]) if isinstance(value, Mapping) else []
    plain = [o for o in options if isinstance(o, Mapping) and o.keys() <= {"type", "$defs"}]
    types = [option.get("type") for option in plain]
    kinds = [kind for type in types for kind in (type if isinstance(type, list) else [type])]
    return [word for kind in kinds for word in _PYTHON_WORDS.get(str(kind), [])]
