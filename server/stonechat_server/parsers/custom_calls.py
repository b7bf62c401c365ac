"""Reads calls of custom tools. In every format the input stands verbatim between two tags:

<custom_tool_call name="NAME">
INPUT
</custom_tool_call>
"""

from collections.abc import Collection

from stonechat_server.parsers.layouts.layout_reader import SectionReader
from stonechat_server.tool_formats.layout import CallArguments, CallEvent, CallStart, hold_back

TRIGGER = "<custom_tool_call"
BEFORE_NAME = ' name="'
AFTER_NAME = '">\n'
CLOSING = "\n</custom_tool_call>"


class CustomCallReader(SectionReader):
    """Reads one call.

    A closing tag counts only if the answer ends there or another call follows (one of `triggers`).
    The input may therefore contain the tag itself.
    """

    def __init__(self, names: Collection[str], triggers: tuple[str, ...]) -> None:
        super().__init__(names)
        self._triggers = triggers
        self._held = ""
        """Text held back: a possible part of the closing tag, or the text after a possible one."""
        self._state = self._before_input

    def _before_input(self, char: str) -> list[CallEvent]:
        head, opening, name = self._raw.partition(BEFORE_NAME)
        is_open = opening and not head and '"' not in name
        if (not opening and BEFORE_NAME.startswith(self._raw)) or is_open:
            return []
        if not opening or head:
            return self._end_with_rest()
        name, _, tail = name.partition('"')
        if tail and not AFTER_NAME[1:].startswith(tail):
            return self._end_with_rest()
        if tail != AFTER_NAME[1:]:
            return []
        if name not in self._names:
            return self._end_with_rest()
        self._num_calls, self.is_cut, self._state = 1, True, self._in_input
        return [CallStart(name, "custom")]

    def _in_input(self, char: str) -> list[CallEvent]:
        self._held += char
        if self._held.endswith(CLOSING):
            text, self._held = self._held[: -len(CLOSING)], ""
            self.is_cut, self._state = False, self._after_closing
            return [CallArguments(text)] if text else []
        num_held = hold_back(self._held, (CLOSING,))
        text, self._held = (
            self._held[: len(self._held) - num_held],
            self._held[len(self._held) - num_held :],
        )
        return [CallArguments(text)] if text else []

    def _after_closing(self, char: str) -> list[CallEvent]:
        self._held += char
        after = self._held.lstrip()
        if any(after.startswith(trigger) for trigger in self._triggers):
            self.rest = self._held
            return []
        if not after or any(trigger.startswith(after) for trigger in self._triggers):
            return []
        text, self._held = CLOSING + self._held, ""
        self.is_cut, self._state = True, self._in_input
        events: list[CallEvent] = [CallArguments(text[0])]
        for held_char in text[1:]:
            events += self._state(held_char)
        return events
