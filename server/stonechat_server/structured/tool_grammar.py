"""Writes the grammar of an answer that may call tools.

One Lark grammar covers free text (or the final answer's form) and sections of calls. As soon as
free text contains the trigger of a section, only a call may follow.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from stonechat_models import GrammarSpec
from stonechat_server.parsers import custom_calls
from stonechat_server.schema.tools import CustomTool, GrammarFormat
from stonechat_server.structured.lark import (
    ANY_TEXT,
    LarkWriter,
    choice,
    json_value,
    quoted,
    regex,
    sequence,
)
from stonechat_server.structured.tag_grammar import TagArguments, is_record
from stonechat_server.structured.tool_options import ToolOptions, parameters
from stonechat_server.tool_formats.layout import (
    HarmonyLayout,
    JsonLayout,
    PythonicLayout,
    TagLayout,
    ToolFormat,
)

MAX_CALLS = 8
"""Calls per section, and sections per answer. The limit stops small models that repeat calls."""


@dataclass(slots=True)
class ToolGrammar:
    """Builds the grammar of one request."""

    options: ToolOptions
    format: ToolFormat
    writer: LarkWriter
    answer: GrammarSpec | None = None
    """The form of the final answer; None: free text."""
    rules: dict[str, str] = field(default_factory=dict, init=False)
    grammars: dict[str, str] = field(default_factory=dict, init=False)
    """Separate grammars, by the name with which the rules refer to them."""

    def build(self) -> GrammarSpec:
        """Return the whole grammar."""
        return self.write(self.answer_rule())

    def answer_rule(self) -> str:
        """Return the rule of a whole answer, and add the rules that it refers to."""
        self._add_calls()
        return choice(
            self._first_sections() if self.options.is_required else self._optional_sections()
        )

    def write(self, start: str) -> GrammarSpec:
        """Return the grammar of all rules, which begins with `start`."""
        lines = [f"start: {start}", *(f"{name}: {body}" for name, body in self.rules.items())]
        text = "\n".join(lines) + "\n"
        if not self.grammars:
            return GrammarSpec("lark", text)
        return GrammarSpec("lark_bundle", json.dumps({"main": text, **self.grammars}))

    def _first_sections(self) -> list[str]:
        more = "more" if "more" in self.rules else ""
        return [sequence(name, more) for name in self._section_names()]

    def _section_names(self) -> list[str]:
        return [name for name in ("functions", "customs") if name in self.rules]

    def _optional_sections(self) -> list[str]:
        if self.answer is not None:
            return [self._final_answer(self.answer), *self._first_sections()]
        more = "more" if "more" in self.rules else ""
        self.rules["TEXT"] = self._text()
        options = ["TEXT"]
        if "functions" in self.rules:
            if self.format.trigger:
                lead = self._lead("functions", self.format.trigger)
                options.append(sequence(lead, "functions_body", more))
            else:
                options.append(sequence("functions", more))
        if "customs" in self.rules:
            lead = self._lead("customs", custom_calls.TRIGGER)
            options.append(sequence(lead, "customs_body", more))
        return options

    def _text(self) -> str:
        """Free text. If calls have no trigger, it must not begin with their first character."""
        if self.format.trigger or not self.options.functions:
            return ANY_TEXT
        return rf"/([^\{self.format.first}\s](?s:.*))?/"

    def _lead(self, name: str, trigger: str) -> str:
        """Free text up to and including the first `trigger`."""
        if self.writer.is_special(trigger):
            return sequence("TEXT", self.writer.literal(trigger))
        terminal = f"{name.upper()}_LEAD"
        self.rules[terminal] = f"TEXT {quoted(trigger)}"
        self.rules[f"{name}_lead[lazy]"] = terminal
        return f"{name}_lead"

    def _final_answer(self, answer: GrammarSpec) -> str:
        match answer.kind:
            case "json_schema":
                return json_value(json.loads(answer.source))
            case "choice":
                return choice(quoted(text) for text in json.loads(answer.source))
            case "regex":
                self.grammars["answer"] = f"start: {regex(answer.source)}\n"
            case _:
                self.grammars["answer"] = answer.source
        return "@answer"

    def _add_calls(self) -> None:
        if self.options.functions:
            self.rules["functions"] = sequence(
                self.writer.literal(self.format.trigger), "functions_body"
            )
            match self.format.layout:
                case PythonicLayout(closing=closing):
                    self._add_pythonic(closing)
                case JsonLayout() as layout:
                    self._add_json(layout)
                case TagLayout() as layout:
                    self._add_tags(layout)
                case HarmonyLayout():
                    raise AssertionError("harmony answers have their own grammar: HarmonyGrammar")
        if self.options.customs:
            self.rules["customs"] = sequence(quoted(custom_calls.TRIGGER), "customs_body")
            self._add_customs()
            if self.options.is_parallel:
                repeatable = [name for name in self._section_names() if self._can_repeat(name)]
                self.rules["more"] = f'("\\n" {choice(repeatable)}){{0,{MAX_CALLS - 1}}}'

    def _can_repeat(self, section: str) -> bool:
        return section == "customs" or bool(self.format.trigger)

    def _repeat(self, call: str, separator: str) -> str:
        if not (self.options.is_parallel and self.format.is_parallel):
            return call
        next_call = sequence(self.writer.literal(separator), call)
        return f"{call} ({next_call}){{0,{MAX_CALLS - 1}}}"

    def _add_json(self, layout: JsonLayout) -> None:
        literal = self.writer.literal
        calls = self._repeat("function_call", layout.separator)
        self.rules["functions_body"] = sequence(
            literal(layout.opening), calls, literal(layout.closing)
        )
        options = []
        if layout.after_number:
            self.rules["CALL_NUMBER"] = "/0|[1-9][0-9]{0,2}/"
        for i, tool in enumerate(self.options.functions):
            options.append(f"function_{i}")
            self.rules[f"function_{i}"] = sequence(
                literal(tool.function.name + layout.after_name),
                "CALL_NUMBER" if layout.after_number else "",
                literal(layout.after_number),
                json_value(parameters(tool)),
                literal(layout.after_arguments),
            )
        self.rules["function_call"] = sequence(literal(layout.before_name), choice(options))

    def _add_tags(self, layout: TagLayout) -> None:
        literal = self.writer.literal
        self.rules["functions_body"] = sequence(
            literal(layout.opening),
            self._repeat("function_call", layout.separator),
            literal(layout.closing),
        )
        options = []
        for i, tool in enumerate(self.options.functions):
            options.append(f"function_{i}")
            self.rules[f"function_{i}"] = sequence(
                literal(tool.function.name + layout.after_name),
                TagArguments(layout, self.writer, self.rules, f"function_{i}").write(
                    parameters(tool)
                ),
                literal(layout.after_arguments),
            )
        self.rules["function_call"] = sequence(literal(layout.before_name), choice(options))

    def _add_pythonic(self, closing: str) -> None:
        calls = self._repeat("function_call", ", ")
        self.rules["functions_body"] = sequence('"["', calls, '"]"', self.writer.literal(closing))
        options = []
        for i, tool in enumerate(self.options.functions):
            options.append(f"function_{i}")
            opening = quoted(tool.function.name + "(")
            self.rules[f"function_{i}"] = f'{opening} {self._keywords(i, parameters(tool))} ")"'
        self.rules["function_call"] = choice(options)

    def _keywords(self, tool: int, schema: dict[str, Any]) -> str:
        """Keyword arguments in the order of the schema, or `**{...}` if it is not a plain record.

        Rules `first_i` and `next_i` write the properties from index i on. No argument precedes
        `first_i`. An argument precedes `next_i`, so the next one begins with a comma.
        """
        if not is_record(schema, str.isidentifier):
            return f'"**" {json_value(schema)}'
        defs = {key: value for key, value in schema.items() if key in ("$defs", "definitions")}
        required = schema.get("required", [])
        properties: dict[str, Any] = schema.get("properties", {})
        for i, (name, value) in enumerate(properties.items()):
            key, prefix = f"function_{tool}_value_{i}", f"function_{tool}"
            self.rules[key] = json_value({**value, **defs} if isinstance(value, dict) else value)
            first_rule = f"{quoted(name + '=')} {key} {prefix}_next_{i + 1}"
            next_rule = f"{quoted(', ' + name + '=')} {key} {prefix}_next_{i + 1}"
            if name not in required:
                first_rule = choice([first_rule, f"{prefix}_first_{i + 1}"])
                next_rule = choice([next_rule, f"{prefix}_next_{i + 1}"])
            self.rules[f"{prefix}_first_{i}"] = first_rule
            self.rules[f"{prefix}_next_{i}"] = next_rule
        for kind in ("first", "next"):
            self.rules[f"function_{tool}_{kind}_{len(properties)}"] = '""'
        return f"function_{tool}_first_0"

    def _add_customs(self) -> None:
        options = []
        for i, tool in enumerate(self.options.customs):
            opening = quoted(tool.custom.name + custom_calls.AFTER_NAME)
            options.append(f"{opening} {self._custom_input(i, tool)}")
        self.rules["customs_body"] = f"{quoted(custom_calls.BEFORE_NAME)} {choice(options)}"

    def _custom_input(self, index: int, tool: CustomTool) -> str:
        """The input of a custom tool, and the closing tag."""
        format = tool.custom.format
        if not isinstance(format, GrammarFormat):
            self.rules["CUSTOM_TEXT"] = f"{ANY_TEXT} {quoted(custom_calls.CLOSING)}"
            self.rules["custom_text[lazy]"] = "CUSTOM_TEXT"
            return "custom_text"
        definition = format.grammar.definition
        is_regex = format.grammar.syntax == "regex"
        self.grammars[f"custom_{index}"] = (
            f"start: {regex(definition)}\n" if is_regex else definition
        )
        return f"@custom_{index} {quoted(custom_calls.CLOSING)}"
