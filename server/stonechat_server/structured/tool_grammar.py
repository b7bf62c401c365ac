"""Writes the grammar of an answer that may call tools.

One Lark grammar covers free text (or the final answer's form) and sections of calls. As soon as
free text contains the trigger of a section, only a call may follow.
"""

import json
from dataclasses import dataclass, field

from stonechat_models import GrammarSpec
from stonechat_server.parsers import custom_calls
from stonechat_server.parsers.answer_marks import AnswerMarks
from stonechat_server.parsers.reasoning import ReasoningMarkers
from stonechat_server.schema.tools import CustomTool, GrammarFormat
from stonechat_server.structured.function_grammar import MAX_CALLS, FunctionCalls
from stonechat_server.structured.lark import (
    ANY_TEXT,
    SPACE,
    LarkWriter,
    choice,
    json_value,
    lazy,
    quoted,
    regex,
    sequence,
)
from stonechat_server.structured.tool_options import ToolOptions
from stonechat_server.tool_formats.layout import CallLayout, ToolFormat
from stonechat_server.tool_formats.openings import inner_opening

MAX_MARKS = 16
"""Marks per answer. Reasoning may return, and marks may be written by mistake."""


@dataclass(frozen=True, slots=True)
class MarkGrammar:
    """The marks of one template. Marks that are no special tokens are part of free text anyway."""

    writer: LarkWriter
    marks: AnswerMarks | None = None
    markers: ReasoningMarkers | None = None

    def within_text(self) -> str:
        """An expression for one mark; empty if no mark has a special token."""
        texts = [*self.marks.texts] if self.marks else []
        if self.markers is not None:
            texts += [self.markers.start, self.markers.end, *self.markers.strays]
        special = [text for text in dict.fromkeys(texts) if self.writer.has_special(text)]
        return choice(map(self.writer.spaced, special)) if special else ""

    def opening(self) -> str:
        """A mark that must begin the text."""
        return choice(map(self.writer.literal, self.marks.openings)) if self.marks else ""

    def around(self, answer: str) -> str:
        """The whole answer, which has a form: the marks may stand around it."""
        if self.marks is None:
            return answer
        spaced = self.writer.spaced
        openings = [sequence(spaced(text), "(SPACE)?") for text in self.marks.openings]
        closings = [sequence("(SPACE)?", spaced(text)) for text in self.marks.closings]
        opening = f"({choice(openings)})?" if openings else ""
        return sequence(opening, answer, f"{choice(closings)}{{0,2}}")

    def after_calls(self) -> str:
        """What may follow calls at the end of the answer."""
        texts = self.marks.closings if self.marks and self.marks.before_calls else ()
        return f"{choice(map(self.writer.literal, texts))}{{0,2}}" if texts else ""

    def before_calls(self) -> str:
        """What may precede calls without a text."""
        text = self.marks.before_calls if self.marks else ""
        return f"({self.writer.literal(text)})?" if text else ""


@dataclass(slots=True)
class ToolGrammar:
    """Builds the grammar of one request."""

    options: ToolOptions
    format: ToolFormat
    writer: LarkWriter
    answer: GrammarSpec | None = None
    """The form of the final answer; None: free text."""
    marks: MarkGrammar | None = None
    rules: dict[str, str] = field(default_factory=lambda: {"SPACE": SPACE}, init=False)
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
        before = sequence("(SPACE)?", self.marks.before_calls() if self.marks else "")
        return [sequence(before, name, self._end()) for name in self._section_names()]

    def _end(self) -> str:
        """What may follow a section. Where a call may follow, whitespace may end the answer."""
        more = "more" if "more" in self.rules else ""
        is_open = self.options.is_parallel and self.format.is_parallel
        marks = self.marks.after_calls() if self.marks else ""
        return sequence(more, "(SPACE)?" if more or is_open else "", marks)

    def _section_names(self) -> list[str]:
        return [name for name in ("functions", "customs") if name in self.rules]

    def _optional_sections(self) -> list[str]:
        if self.answer is not None:
            answer = self._final_answer(self.answer)
            return [self.marks.around(answer) if self.marks else answer, *self._first_sections()]
        self.rules["TEXT"] = self._text()
        mark = self.marks.within_text() if self.marks else ""
        if mark:
            self.rules["marked"] = f"(TEXT {mark}){{0,{MAX_MARKS}}}"
        options = ["TEXT"]
        if "functions" in self.rules:
            if self.format.trigger:
                lead = self._lead("functions", self.format.trigger)
                options.append(sequence(lead, "functions_body", self._end()))
            else:
                options.append(sequence("(SPACE)? functions", self._end()))
            if inner := self._inner_section():
                options.append(sequence(inner, self._end()))
        if "customs" in self.rules:
            lead = self._lead("customs", custom_calls.TRIGGER)
            options.append(sequence(lead, "customs_body", self._end()))
        options = [sequence("marked" if mark else "", option) for option in options]
        if not self.format.opens_in_prompt or self.marks is None:
            return options
        opening = self.marks.opening()
        return [*(sequence(opening, option) for option in options), *self._first_sections()]

    def _text(self) -> str:
        """Free text. If calls have no trigger, it must not begin with their first character."""
        if self.format.trigger or not self.options.functions:
            return ANY_TEXT
        return rf"/([^\{self.format.first}\s](?s:.*))?/"

    def _lead(self, name: str, trigger: str) -> str:
        """Free text up to and including the first `trigger`."""
        if self.writer.begins_special(trigger):
            return sequence("TEXT", self.writer.literal(trigger))
        before, token = self.writer.split_at_special(trigger)
        if not token:
            return lazy(self.rules, f"{name}_lead", "TEXT", before)
        terminal = f"{name.upper()}_LEAD"  # the token ends the text, so the terminal need not
        self.rules[terminal] = f"TEXT {quoted(before)}"
        return sequence(terminal, self.writer.literal(token))

    def _inner_section(self) -> str:
        """Free text up to a call without its section's trigger, then the rest of the section.

        It is empty if no call can open so.
        """
        layout, opening = self.format.layout, inner_opening(self.format)
        has_split_token = self.writer.has_special(opening) != self.writer.begins_special(opening)
        if not opening or has_split_token or not isinstance(layout, CallLayout):
            return ""
        spaced = self.writer.spaced
        first = self.rules["function_call"].removeprefix(spaced(layout.before_name)).strip()
        functions = FunctionCalls(self.options, self.format, self.writer, self.rules)
        calls = functions.repeat(first, spaced(layout.separator), "function_call")
        return sequence(self._lead("inner", opening), calls, spaced(layout.closing))

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
            prefix = self.format.prefix
            has_prefix = bool(prefix) and self.writer.is_special(prefix)
            self.rules["functions"] = sequence(
                f"({self.writer.literal(prefix)})?" if has_prefix else "",
                "" if self.format.opens_in_prompt else self.writer.literal(self.format.trigger),
                "functions_body",
            )
            FunctionCalls(self.options, self.format, self.writer, self.rules).add()
        if self.options.customs:
            self.rules["customs"] = sequence(quoted(custom_calls.TRIGGER), "customs_body")
            self._add_customs()
        repeatable = [name for name in self._section_names() if self._can_repeat(name)]
        if self.options.is_parallel and repeatable:
            self.rules["more"] = f"((SPACE)? {choice(repeatable)}){{0,{MAX_CALLS - 1}}}"

    def _can_repeat(self, section: str) -> bool:
        """Whether another such section may follow. One that has no end takes all calls itself."""
        if section == "customs":
            return True
        format = self.format
        is_open = format.opens_in_prompt or not format.trigger
        return format.is_parallel and not is_open and bool(getattr(format.layout, "closing", ""))

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
            return lazy(self.rules, "custom_text", ANY_TEXT, custom_calls.CLOSING)
        definition = format.grammar.definition
        is_regex = format.grammar.syntax == "regex"
        self.grammars[f"custom_{index}"] = (
            f"start: {regex(definition)}\n" if is_regex else definition
        )
        return f"@custom_{index} {quoted(custom_calls.CLOSING)}"
