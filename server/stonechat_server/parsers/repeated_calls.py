"""Ends an answer before a call that must not be delivered."""

import json
import re
from collections import defaultdict
from dataclasses import replace
from typing import Any

from stonechat_server.parsers.deltas import (
    DeltaParser,
    EndDelta,
    ParsedDelta,
    ToolCallDelta,
    WrappingParser,
)
from stonechat_server.parsers.json_text import is_same_json, read_json
from stonechat_server.parsers.scanners import JsonScanner

_TEXT_MEMBER = re.compile(r'\s*("(?:[^"\\]|\\.)*")\s*:\s*"([^"\\]*)', re.DOTALL)
"""The beginning of a member whose value is a string without escapes so far."""


class CallFilter(WrappingParser):
    """A `DeltaParser` that ends the answer of `inner` before a call that is one too many.

    With `ends_at_repeat`, that is a call that repeats an earlier one: the same name, and arguments
    that are equal as JSON. Without `is_parallel`, it is a second call. A call is held back while it
    may still become a repeat.
    """

    def __init__(self, inner: DeltaParser, *, is_parallel: bool, ends_at_repeat: bool) -> None:
        super().__init__(inner)
        self._is_parallel = is_parallel
        self._ends_at_repeat = ends_at_repeat
        self._earlier: defaultdict[tuple[str, str | None], list[Any]] = defaultdict(list)
        """By type and name: the arguments (a dict) or the input of each whole call."""
        self._call: _Call | None = None
        self._has_ended = False

    @property
    def is_call_cut(self) -> bool:
        return self.inner.is_call_cut and not self._has_ended

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        deltas: list[ParsedDelta] = []
        for delta in [] if self._has_ended else self.inner.feed(text, finished):
            if not isinstance(delta, ToolCallDelta) or delta.name is not None:
                self._close(deltas)
            if not self._has_ended:
                self._add(delta, deltas)
            if self._has_ended:
                return deltas
        if finished:
            self._close(deltas, is_cut=self.inner.is_call_cut)
        return deltas

    def _add(self, delta: ParsedDelta, deltas: list[ParsedDelta]) -> None:
        if not isinstance(delta, ToolCallDelta):
            deltas.append(delta)
            return
        if delta.name is not None:
            if delta.index > 0 and not self._is_parallel:
                self._end(deltas)
                return
            self._call = _Call(delta, self._earlier[delta.type, delta.name])
        call = self._call
        assert call is not None, "the first fragment of a call has its name"
        if call.is_held:
            call.compare(delta.arguments)
            if call.is_repeat:
                self._end(deltas)
            elif not call.is_held:
                deltas.append(call.joined())
        else:
            call.text += delta.arguments
            deltas.append(delta)

    def _close(self, deltas: list[ParsedDelta], is_cut: bool = False) -> None:
        """End the latest call, if there is one that has not ended."""
        call, self._call = self._call, None
        if call is None:
            return
        if (
            call.is_held
            and call.first.type == "custom"
            and not is_cut
            and call.text in call.earlier
        ):
            self._end(deltas)
            return
        if call.is_held:
            deltas.append(call.joined())
        if self._ends_at_repeat and not is_cut:
            call.remember()

    def _end(self, deltas: list[ParsedDelta]) -> None:
        deltas.append(EndDelta())
        self._has_ended, self._call = True, None


class _Call:
    """A call that is being written, and the `earlier` calls of the same name."""

    def __init__(self, first: ToolCallDelta, earlier: list[Any]) -> None:
        self.first = first
        self.earlier = earlier
        self.text = ""
        """The arguments or the input so far."""
        self.is_repeat = False
        self._equal = list(earlier)
        """Those earlier calls that this one may still equal."""
        self._scanner = JsonScanner()
        self._member = ""
        self._keys: set[str] = set()

    @property
    def is_held(self) -> bool:
        return bool(self._equal)

    def joined(self) -> ToolCallDelta:
        """The call so far as one fragment."""
        return replace(self.first, arguments=self.text)

    def remember(self) -> None:
        """Add this call to the earlier calls, if it is whole."""
        if self.first.type == "custom":
            self.earlier.append(self.text)
            return
        try:
            self.earlier.append(read_json(self.text))
        except ValueError:
            return

    def compare(self, text: str) -> None:
        """Add a piece of the arguments. It may end `is_held`, or show that the call `is_repeat`."""
        self.text += text
        if self.first.type == "custom":
            self._equal = [input for input in self._equal if input.startswith(self.text)]
            return
        for char in text:
            self._scan(char)
            if self.is_repeat or not self._equal:
                return
        self._compare_text()

    def _scan(self, char: str) -> None:
        """Read a character of the object. Members are compared one by one, as they end."""
        was_outside = self._scanner.is_outside
        is_end = self._scanner.push(char)
        is_comma = char == "," and self._scanner.depth == 1 and self._scanner.quote is None
        if not (was_outside or is_end or is_comma):
            self._member += char
        elif is_end or is_comma:
            self._compare_member()
            self._member = ""
        if is_end:
            self._equal = [object for object in self._equal if object.keys() == self._keys]
            self.is_repeat = self.is_held

    def _compare_member(self) -> None:
        try:
            member = read_json("{" + self._member + "}")
        except ValueError:
            self._equal = []
            return
        self._keys |= member.keys()
        self._equal = [
            object
            for object in self._equal
            if all(key in object and is_same_json(object[key], member[key]) for key in member)
        ]

    def _compare_text(self) -> None:
        """Compare a string that has begun: it may be long, and tell the calls apart early."""
        match = _TEXT_MEMBER.fullmatch(self._member)
        if match is None:
            return
        key, text = json.loads(match[1]), match[2]
        values = [(object, object.get(key)) for object in self._equal]
        self._equal = [
            o for o, value in values if isinstance(value, str) and value.startswith(text)
        ]
