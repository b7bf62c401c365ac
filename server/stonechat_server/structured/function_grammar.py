"""Writes the grammar of function calls in the layout of their format."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from stonechat_server.structured.element_grammar import ElementArguments
from stonechat_server.structured.lark import LarkWriter, choice, json_value, quoted, regex, sequence
from stonechat_server.structured.records import allows_nothing, json_arguments, read_record
from stonechat_server.structured.tag_grammar import TagArguments
from stonechat_server.structured.tool_options import ToolOptions, parameters
from stonechat_server.structured.value_grammar import PLAIN_KEY, ValueGrammar
from stonechat_server.tool_formats.layout import (
    CallLayout,
    DictLayout,
    ElementLayout,
    HarmonyLayout,
    JsonLayout,
    PythonicLayout,
    TagLayout,
    ToolFormat,
)

QUOTE = quoted('"')
MAX_CALLS = 8
"""Calls per section, and sections per answer. The limit stops small models that repeat calls."""


@dataclass(slots=True)
class FunctionCalls:
    """Adds `functions_body`, a section after its trigger, and `function_call` to `rules`."""

    options: ToolOptions
    format: ToolFormat
    writer: LarkWriter
    rules: dict[str, str]

    def add(self) -> None:
        """Add the rules."""
        match self.format.layout:
            case PythonicLayout() as layout:
                self._add_pythonic(layout)
            case HarmonyLayout():
                raise AssertionError("harmony answers have their own grammar: HarmonyGrammar")
            case layout:
                self._add_functions(layout)

    def repeat(self, call: str, separator: str, later_call: str = "") -> str:
        """The calls of a section. Those after the first are like `later_call`, if it is given."""
        if not (self.options.is_parallel and self.format.is_parallel):
            return call
        next_call = sequence(self._space(), separator, later_call or call)
        return f"{call} ({next_call}){{0,{MAX_CALLS - 1}}}"

    def _space(self) -> str:
        """What may precede a separator: space, if the trigger of a section begins each call."""
        trigger, layout = self.format.trigger, self.format.layout
        has_trigger = isinstance(layout, CallLayout) and layout.separator.startswith(trigger)
        return "(SPACE)?" if trigger and has_trigger else ""

    def _first_space(self, next_text: str) -> str:
        """What may stand between the trigger and `next_text`: space, if the trigger is a mark."""
        is_mark = self.format.trigger.endswith((">", "]"))
        return "(SPACE)?" if is_mark and not next_text[:1].isspace() else ""

    def _add_functions(self, layout: CallLayout) -> None:
        is_json = isinstance(layout, JsonLayout) and "{" in layout.before_name
        spaced = partial(self.writer.spaced, is_json=is_json)
        self.rules["functions_body"] = sequence(
            self._first_space(layout.opening + layout.before_name),
            spaced(layout.opening),
            self.repeat("function_call", spaced(layout.separator)),
            spaced(layout.closing),
        )
        id_before, id_after = self._call_id(layout)
        options = []
        for i, tool in enumerate(self.options.functions):
            options.append(f"function_{i}")
            self.rules[f"function_{i}"] = sequence(
                quoted(tool.function.name),
                id_after,
                spaced(layout.after_name),
                self._arguments(layout, f"function_{i}", parameters(tool)),
                self._id_key(layout),
                spaced(self._after_arguments(layout)),
            )
        self.rules["function_call"] = sequence(
            spaced(layout.before_name), id_before, choice(options)
        )

    def _after_arguments(self, layout: CallLayout) -> str:
        """The text after the arguments, whose first mark nested elements have written already."""
        text = layout.after_arguments
        return text.removeprefix(layout.mark) if isinstance(layout, ElementLayout) else text

    def _call_id(self, layout: CallLayout) -> tuple[str, str]:
        """What precedes the name, and what follows it, if calls have ids."""
        if layout.id is None:
            return "", ""
        self.rules["CALL_ID"] = regex(layout.id.pattern)
        if layout.id.after:
            return sequence("CALL_ID", self.writer.spaced(layout.id.after, is_json=True)), ""
        text = sequence(self.writer.literal(layout.id.before), "CALL_ID")
        return "", f"({text})?" if layout.id.is_optional else text

    def _id_key(self, layout: CallLayout) -> str:
        if not isinstance(layout, JsonLayout) or not layout.has_id_key:
            return ""
        self.rules["CALL_ID"] = "/[a-zA-Z0-9_.:-]{1,64}/"
        opening = self.writer.spaced(', "id": "', is_json=True)
        return f"({sequence(opening, 'CALL_ID', QUOTE)})?"

    def _arguments(self, layout: CallLayout, name: str, schema: dict[str, Any]) -> str:
        match layout:
            case JsonLayout():
                return json_arguments(schema)
            case TagLayout():
                return TagArguments(layout, self.writer, self.rules, name).write(schema)
            case ElementLayout(mark=mark):
                return ElementArguments(schema, mark, self.writer, self.rules, name).write()
            case DictLayout(quote=quote):
                values = ValueGrammar(schema, self.writer, self.rules, name, quote)
                record = read_record(schema, lambda key: PLAIN_KEY.fullmatch(key) is not None)
                rows = [*map(values.value, record.schemas() if record else [schema])]
                if record is not None and record.is_partial:
                    rows.append(json_value(schema))
                return choice(rows)

    def _add_pythonic(self, layout: PythonicLayout) -> None:
        spaced = self.writer.spaced
        calls = self.repeat("function_call", spaced(layout.separator))
        self.rules["functions_body"] = sequence(
            self._first_space(layout.opening),
            spaced(layout.opening),
            "(SPACE)?",
            calls,
            "(SPACE)?",
            spaced(layout.closing),
        )
        options = []
        for i, tool in enumerate(self.options.functions):
            options.append(f"function_{i}")
            keywords = self._keywords(f"function_{i}", parameters(tool))
            self.rules[f"function_{i}"] = sequence(
                quoted(tool.function.name + "("), keywords, '")"'
            )
        self.rules["function_call"] = choice(options)

    def _keywords(self, name: str, schema: dict[str, Any]) -> str:
        """Keyword arguments in any order, or `**{...}` if it is no plain record."""
        record = read_record(schema, str.isidentifier)
        if record is None:
            whole = f'"**" {json_value(schema)}'
            return choice(['""', whole]) if allows_nothing(schema) else whole
        values = ValueGrammar(schema, self.writer, self.rules, name)
        rows = [values.pairs(row, lambda key: quoted(f"{key}=")) for row in record.schemas()]
        if record.is_partial:
            rows.append(f'"**" {json_value(schema)}')
        return choice(row or '""' for row in rows)
