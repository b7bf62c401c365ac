"""Writes the grammars of answers that are messages: see `parsers.harmony` and `parsers.muse`."""

from dataclasses import dataclass, replace
from typing import ClassVar

from stonechat_models import GrammarSpec
from stonechat_server.structured.function_grammar import MAX_CALLS, FunctionCalls
from stonechat_server.structured.lark import ANY_TEXT, LarkWriter, choice, quoted, sequence
from stonechat_server.structured.records import json_arguments
from stonechat_server.structured.tool_grammar import ToolGrammar
from stonechat_server.structured.tool_options import NO_TOOLS, ToolOptions, parameters
from stonechat_server.tool_formats import muse
from stonechat_server.tool_formats.harmony import CHANNEL, CONSTRAIN, END, MESSAGE, START
from stonechat_server.tool_formats.hermes import GENERIC
from stonechat_server.tool_formats.layout import TagLayout

MAX_THOUGHTS = 8
"""At most this many reasoning messages per answer; with a budget, at most one."""


@dataclass(slots=True)
class HarmonyGrammar:
    """Builds the grammar of a gpt-oss answer: messages with channels.

    `budget` is the maximum number of reasoning tokens. `is_open` means that the prompt ends inside
    the final message. Custom tools are called in the final message.
    """

    options: ToolOptions | None
    writer: LarkWriter
    answer: GrammarSpec | None = None
    budget: int | None = None
    is_open: bool = False
    thought_header: ClassVar[str] = f"{CHANNEL}analysis{MESSAGE}"
    preamble_header: ClassVar[str] = f"{CHANNEL}commentary{MESSAGE}"
    next_message: ClassVar[str] = f"{END}{START}assistant"
    """Ends a message and begins the next."""

    def build(self) -> GrammarSpec:
        """Return the whole grammar."""
        options = self.options or NO_TOOLS
        customs = replace(options, callable=tuple(options.customs))
        final = ToolGrammar(customs, GENERIC, self.writer, self.answer)
        can_end = bool(options.customs) or not options.is_required
        rule = final.answer_rule() if can_end else ""
        if self.is_open and can_end:
            return final.write(rule)
        rules = final.rules
        limit = "" if self.budget is None else f"[max_tokens={self.budget}]"
        rules["THOUGHT"] = rules["PREAMBLE"] = ANY_TEXT
        rules[f"thought{limit}"] = "THOUGHT"
        rules["thinking"] = self._message(self.thought_header, "thought")
        endings = [sequence(self._final_header(rules), rule)] * can_end
        if options.functions:
            rules["preamble"] = self._message(self.preamble_header, "PREAMBLE")
            calls = self._add_calls(options, rules)
            may_inform = self._may_inform and not options.is_required
            endings.append(sequence("(preamble)?" if may_inform else "", calls))
        return final.write(sequence(self._thoughts(), choice(endings)))

    @property
    def _may_inform(self) -> bool:
        """Whether a text to the user may precede a call."""
        return True

    def _thoughts(self) -> str:
        if self.budget is None:
            return f"thinking{{0,{MAX_THOUGHTS}}}"
        return "(thinking)?" if self.budget else ""

    def _message(self, header: str, text: str) -> str:
        literal = self.writer.literal
        return sequence(literal(header), text, literal(self.next_message))

    def _final_header(self, rules: dict[str, str]) -> str:
        """The header of the final message. May add rules."""
        literal = self.writer.literal
        constrained = sequence('(" ")?', literal(f"{CONSTRAIN}json"))
        rules["json_mark"] = choice([quoted(" json"), constrained])
        return sequence(literal(f"{CHANNEL}final"), "(json_mark)?", literal(MESSAGE))

    def _add_calls(self, options: ToolOptions, rules: dict[str, str]) -> str:
        """Add the rules of calls, and return the name of that of all.

        The recipient stands after the channel's name or before both.
        """
        literal = self.writer.literal
        channel = choice([quoted("commentary"), quoted("analysis")])
        calls = []
        for i, tool in enumerate(options.functions):
            recipient = quoted(f" to=functions.{tool.function.name}")
            header = choice(
                [
                    sequence(literal(CHANNEL), channel, recipient),
                    sequence(recipient, literal(CHANNEL), channel),
                ]
            )
            rules[f"call_{i}"] = sequence(
                header, "(json_mark)?", literal(MESSAGE), json_arguments(parameters(tool))
            )
            calls.append(f"call_{i}")
        rules["function_call"] = choice(calls)
        return "function_call"


@dataclass(slots=True)
class MuseGrammar(HarmonyGrammar):
    """Builds the grammar of a Muse Glimmer answer. Each call is a message of its own."""

    thought_header: ClassVar[str] = f" to=self{muse.MESSAGE}"
    preamble_header: ClassVar[str] = f" to=user{muse.MESSAGE}"
    next_message: ClassVar[str] = f"{muse.END}{muse.START}assistant"

    @property
    def _may_inform(self) -> bool:
        """An answer that has a form may not: such a text is like the final message."""
        return self.answer is None

    def _final_header(self, rules: dict[str, str]) -> str:
        return sequence('(" to=user")?', self.writer.literal(muse.MESSAGE))

    def _add_calls(self, options: ToolOptions, rules: dict[str, str]) -> str:
        layout = muse.MUSE.layout
        assert isinstance(layout, TagLayout)
        FunctionCalls(options, muse.MUSE, self.writer, rules).add()
        opening = self.writer.spaced(muse.MUSE.trigger + layout.opening + layout.before_name)
        calls = []
        for i, tool in enumerate(options.functions):
            header = sequence(
                quoted(f" to={tool.function.name}"), self.writer.literal(muse.MESSAGE)
            )
            closing = self.writer.spaced(layout.closing)
            rules[f"call_{i}"] = sequence(header, opening, f"function_{i}", closing)
            calls.append(f"call_{i}")
        rules["call"] = choice(calls)
        num_more = MAX_CALLS - 1 if options.is_parallel else 0
        more = sequence(self.writer.literal(self.next_message), "call")
        rules["calls"] = f"call ({more}){{0,{num_more}}}" if num_more else "call"
        return "calls"
