"""Reads an answer that begins with calls as plain JSON, without the marks of the tool format.

Small models answer so. The JSON is an object with `name` and `arguments` or other keys of that
meaning, one as OpenAI's API has it, several such objects, or a list of them; a code fence, or a tag
such as `<tools>`, may surround it.
"""

from dataclasses import replace

from stonechat_server.parsers.deltas import (
    ContentDelta,
    DeltaParser,
    ParsedDelta,
    ToolCallDelta,
    WrappingParser,
)
from stonechat_server.parsers.layouts.bare_reader import BareCallReader
from stonechat_server.parsers.tool_calls import ToolNames
from stonechat_server.tool_formats.layout import JsonLayout, ToolFormat
from stonechat_server.tool_formats.openings import closing_mark


def may_be_bare(format: ToolFormat) -> bool:
    """Whether calls without marks can be told from those of the format."""
    return not format.has_messages


def _needs_fence(format: ToolFormat) -> bool:
    """Whether only a fence tells such calls from those of the format, which are bare as well."""
    return not format.trigger and isinstance(format.layout, JsonLayout)


def _has_name_as_key(format: ToolFormat) -> bool:
    return isinstance(format.layout, JsonLayout) and format.layout.before_name == '{"'


class BareCallParser(WrappingParser):
    """A `DeltaParser`. `inner` parses an answer that does not begin with calls as plain JSON.

    It also parses the text after such calls. The arguments of a call must fit the tool's schema.
    Text is held back while it may still become a call.
    """

    def __init__(self, inner: DeltaParser, format: ToolFormat, names: ToolNames) -> None:
        super().__init__(inner)
        self._format = format
        self._reader: BareCallReader | None = BareCallReader(
            names.functions,
            names.schemas,
            closing_mark(format),
            needs_fence=_needs_fence(format),
            trigger=format.trigger,
            has_name_as_key=_has_name_as_key(format),
        )
        self._num_calls = 0

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        deltas: list[ParsedDelta] = []
        if self._reader is not None:
            text = self._read(self._reader, text, finished, deltas)
        if text or finished:
            deltas += [self._renumbered(delta) for delta in self.inner.feed(text, finished)]
        return deltas

    def _read(
        self, reader: BareCallReader, text: str, finished: bool, deltas: list[ParsedDelta]
    ) -> str:
        """Read calls. Return the text that is not part of one."""
        for position, char in enumerate(text):
            for call in reader.push(char):
                deltas.append(
                    ToolCallDelta(
                        index=self._num_calls,
                        arguments=call.arguments,
                        id=self._format.new_id(),
                        name=call.name,
                    )
                )
                self._num_calls += 1
            if reader.is_over:
                self._reader = None
                return self._rest(reader) + text[position + 1 :]
        if not finished:
            return ""
        self._reader = None
        if not reader.is_named:
            return "" if reader.is_closing else self._rest(reader)
        deltas.append(ContentDelta(reader.held, may_be_call=True))
        return ""

    def _rest(self, reader: BareCallReader) -> str:
        """The held text; whitespace next to a call is removed."""
        return reader.held.lstrip() if self._num_calls else reader.held

    def _renumbered(self, delta: ParsedDelta) -> ParsedDelta:
        if isinstance(delta, ToolCallDelta):
            return replace(delta, index=delta.index + self._num_calls)
        return delta
