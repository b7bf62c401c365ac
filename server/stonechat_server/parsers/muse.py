"""Parses answers of Muse Glimmer: messages with recipients for text, reasoning and calls.

A message consists of `<|start|>assistant`, a header, `<|message|>`, the text, and `<|eom|>`, or
`<|eot|>` if it is the last. The `<|start|>assistant` of the first message is part of the prompt.
The header names the recipient: ` to=self` is reasoning, ` to=user` or none the answer, and
` to=NAME` a call, whose text is an element `<atem:function_calls>`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from stonechat_server.parsers.deltas import DeltaParser, EndDelta, ParsedDelta, ToolCallDelta
from stonechat_server.parsers.harmony import HarmonyParser
from stonechat_server.tool_formats.muse import END, MESSAGE, RECIPIENT_KEY, RETURN, START

_RECIPIENT = re.compile(r"\bto=(\S+)")


@dataclass(slots=True)
class MuseParser(HarmonyParser):
    """A `DeltaParser`. `new_inner` makes the parser of one message.

    Its argument says whether the message is to a tool.
    """

    new_inner: Callable[[bool], DeltaParser] = field(kw_only=True)
    _has_ended: bool = field(default=False, init=False)
    openings: ClassVar[tuple[str, ...]] = (RECIPIENT_KEY, MESSAGE, START)
    ends: ClassVar[tuple[str, ...]] = (END, RETURN, START)

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        if self._has_ended:
            return []
        deltas = [self._numbered(delta) for delta in HarmonyParser.feed(self, text, finished)]
        return [*deltas, EndDelta()] if self._has_ended else deltas

    def _numbered(self, delta: ParsedDelta) -> ParsedDelta:
        """Count the calls of all messages."""
        if not isinstance(delta, ToolCallDelta):
            return delta
        self._num_calls += delta.name is not None
        return replace(delta, index=self._num_calls - 1)

    def _is_cut_recipient(self) -> bool:
        text = self._held.strip()
        is_recipient = text.startswith(RECIPIENT_KEY) or RECIPIENT_KEY.startswith(text)
        return bool(self._held) and is_recipient and MESSAGE not in text

    def _open(self, header: str) -> None:
        found = _RECIPIENT.search(header)
        recipient = found[1] if found is not None else "user"
        self._in_reasoning = recipient == "self"
        self._is_to_tool = recipient not in ("self", "user")
        self.inner = self.new_inner(self._is_to_tool)

    def _close(self, end: str, deltas: list[ParsedDelta]) -> None:
        self._is_header = True
        deltas += self.inner.feed("", True)
        if end == RETURN:
            self._has_ended, self._held = True, ""
