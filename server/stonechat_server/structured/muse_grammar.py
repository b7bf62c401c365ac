"""Writes the grammar of a Muse Glimmer answer: messages with recipients (see `parsers.muse`)."""

from dataclasses import dataclass
from typing import ClassVar

from stonechat_server.structured.function_grammar import MAX_CALLS, FunctionCalls
from stonechat_server.structured.harmony_grammar import HarmonyGrammar
from stonechat_server.structured.lark import choice, quoted, sequence
from stonechat_server.structured.tool_options import ToolOptions
from stonechat_server.tool_formats.layout import TagLayout
from stonechat_server.tool_formats.muse import END, MESSAGE, MUSE, START


@dataclass(slots=True)
class MuseGrammar(HarmonyGrammar):
    """Builds the grammar of one request. Each call is a message of its own."""

    thought_header: ClassVar[str] = f" to=self{MESSAGE}"
    preamble_header: ClassVar[str] = f" to=user{MESSAGE}"
    next_message: ClassVar[str] = f"{END}{START}assistant"

    @property
    def _may_inform(self) -> bool:
        """An answer that has a form may not: such a text is like the final message."""
        return self.answer is None

    def _final_header(self, rules: dict[str, str]) -> str:
        return sequence('(" to=user")?', self.writer.literal(MESSAGE))

    def _add_calls(self, options: ToolOptions, rules: dict[str, str]) -> str:
        layout = MUSE.layout
        assert isinstance(layout, TagLayout)
        FunctionCalls(options, MUSE, self.writer, rules).add()
        opening = self.writer.spaced(MUSE.trigger + layout.opening + layout.before_name)
        calls = []
        for i, tool in enumerate(options.functions):
            header = sequence(quoted(f" to={tool.function.name}"), self.writer.literal(MESSAGE))
            closing = self.writer.spaced(layout.closing)
            rules[f"call_{i}"] = sequence(header, opening, f"function_{i}", closing)
            calls.append(f"call_{i}")
        rules["call"] = choice(calls)
        num_more = MAX_CALLS - 1 if options.is_parallel else 0
        more = sequence(self.writer.literal(self.next_message), "call")
        rules["calls"] = f"call ({more}){{0,{num_more}}}" if num_more else "call"
        return "calls"
