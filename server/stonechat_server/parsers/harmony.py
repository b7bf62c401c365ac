"""Parses answers of gpt-oss ("harmony"): messages with channels for text, reasoning and calls.

A message consists of `<|start|>assistant`, a header, `<|message|>`, the text, and `<|end|>`. The
`<|start|>assistant` of the first message is part of the prompt. The header names the channel:
`analysis` is reasoning, `final` the answer, `commentary` a text to the user before a call. The
header of a call also names its recipient, before or after the channel:
`<|channel|>commentary to=functions.NAME <|constrain|>json`. A call ends the answer, so an answer
has at most one.
"""

import re
from dataclasses import dataclass, field
from typing import ClassVar

from stonechat_server.parsers.deltas import (
    ContentDelta,
    DeltaParser,
    ParsedDelta,
    ReasoningDelta,
    ToolCallDelta,
)
from stonechat_server.parsers.scanners import JsonScanner
from stonechat_server.parsers.tool_calls import ToolNames
from stonechat_server.tool_formats.harmony import CALL, CHANNEL, END, MESSAGE, RETURN, START
from stonechat_server.tool_formats.layout import hold_back, new_call_id

_RECIPIENT_KEY = "to=functions."
_RECIPIENT = re.compile(r"\bto=functions\.([a-zA-Z0-9_.-]+)")
_GAP = "\n\n"
"""Separates the texts of two messages of the same kind."""


@dataclass(slots=True)
class HarmonyParser:
    """A `DeltaParser`. `inner` parses the text of messages to the user.

    `is_open` means that the prompt ends inside such a message. Without `has_reasoning` reasoning is
    content. An answer that does not begin with a header counts as one message to the user.
    """

    names: ToolNames | None
    inner: DeltaParser
    is_open: bool = False
    has_reasoning: bool = True
    openings: ClassVar[tuple[str, ...]] = (CHANNEL, _RECIPIENT_KEY)
    """Texts with which a header begins."""
    ends: ClassVar[tuple[str, ...]] = (END, CALL, RETURN, START)
    _held: str = field(default="", init=False)
    _is_header: bool = field(default=True, init=False)
    _is_first: bool = field(default=True, init=False)
    _in_reasoning: bool = field(default=False, init=False)
    _call: str | None = field(default=None, init=False)
    _num_calls: int = field(default=0, init=False)
    _scanner: JsonScanner = field(default_factory=JsonScanner, init=False)
    _is_cut: bool = field(default=False, init=False)
    _gap: str = field(default="", init=False)
    """Separator that precedes the message's text."""
    _is_to_tool: bool = field(default=False, init=False)
    """Whether `inner` parses a message to a tool."""
    _kinds: set[tuple[bool, bool]] = field(default_factory=set, init=False)
    """Kinds of text so far (see `_kind`)."""

    def __post_init__(self) -> None:
        self._is_header = not self.is_open

    @property
    def in_reasoning(self) -> bool:
        return self._in_reasoning and not self._is_header and self.has_reasoning

    @property
    def is_call_cut(self) -> bool:
        return self._is_cut or self.inner.is_call_cut

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        self._held += text
        deltas: list[ParsedDelta] = []
        if finished and self._is_header and self._is_first and self._is_cut_recipient():
            return [ContentDelta(self._held, may_be_call=True)]
        while self._read_header(finished) if self._is_header else self._read_text(deltas, finished):
            pass
        if finished:
            deltas += self.inner.feed("", True)
        return deltas

    def _is_cut_recipient(self) -> bool:
        """Whether the answer is only the beginning of a header that begins with a recipient."""
        text = self._held.strip()
        return self.names is not None and bool(text) and _RECIPIENT_KEY.startswith(text)

    def _read_header(self, finished: bool) -> bool:
        if self._is_first and not self._may_be_header(finished):
            self._is_header = self._is_first = False
            return True
        header, marker, rest = self._held.partition(MESSAGE)
        if marker:
            self._held, self._is_header, self._is_first = rest, False, False
            self._open(header)
            self._gap = _GAP if self._kind() in self._kinds else ""
        return bool(marker)

    def _may_be_header(self, finished: bool) -> bool:
        """Whether an answer that begins with the held text may begin with a header."""
        beginning = self._held.lstrip()
        if finished:
            return beginning.startswith(self.openings)
        return any(
            beginning.startswith(opening) or opening.startswith(beginning)
            for opening in self.openings
        )

    def _open(self, header: str) -> None:
        recipient = _RECIPIENT.search(header)
        functions = self.names.functions if self.names is not None else ()
        self._call = recipient[1] if recipient is not None and recipient[1] in functions else None
        self._in_reasoning = f"{CHANNEL}analysis" in header and self._call is None
        self._is_cut = self._call is not None
        self._scanner = JsonScanner()

    def _kind(self) -> tuple[bool, bool]:
        """Whether the message is reasoning, and whether it is to a tool."""
        return self._in_reasoning and self.has_reasoning, self._is_to_tool

    def _read_text(self, deltas: list[ParsedDelta], finished: bool) -> bool:
        ends = [(self._held.find(end), end) for end in self.ends if end in self._held]
        position, end = min(ends, default=(-1, ""))
        if position < 0:
            num_held = 0 if finished else hold_back(self._held, self.ends)
            position = len(self._held) - num_held
        text, self._held = self._held[:position], self._held[position + len(end) :]
        self._emit(text, deltas)
        if end:
            self._close(end, deltas)
        return bool(end)

    def _close(self, end: str, deltas: list[ParsedDelta]) -> None:
        """End the message."""
        self._is_header, self._call = True, None

    def _emit(self, text: str, deltas: list[ParsedDelta]) -> None:
        if self._call is not None:
            self._emit_call(text, deltas)
        elif text:
            is_thought, _ = kind = self._kind()
            self._kinds.add(kind)
            text, self._gap = self._gap + text, ""
            deltas += [ReasoningDelta(text)] if is_thought else self.inner.feed(text, False)

    def _emit_call(self, text: str, deltas: list[ParsedDelta]) -> None:
        if self._call:
            self._num_calls += 1
            name, self._call = self._call, ""
            deltas.append(ToolCallDelta(index=self._num_calls - 1, id=new_call_id(), name=name))
        arguments = ""
        for char in text if self._is_cut else "":
            arguments += char
            if self._scanner.push(char):
                self._is_cut = False  # text after the object is not part of the call
                break
        if arguments:
            deltas.append(ToolCallDelta(index=self._num_calls - 1, arguments=arguments))
