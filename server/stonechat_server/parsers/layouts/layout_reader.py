"""The common parts of the readers of calls."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar

from stonechat_server.parsers.scanners import LiteralMatcher
from stonechat_server.tool_formats.layout import CallEvent, CallLayout, CallStart

NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")

Layout = TypeVar("Layout", bound=CallLayout)
State = Callable[[str], list[CallEvent]]
Schemas = Mapping[str, Mapping[str, Any]]


class SectionReader:
    """Reads the calls that follow a trigger, character by character, one state after the other."""

    rest: str | None = None
    """None while reading; at the end of the section, the characters that are not part of it.

    If the section has no call, these are all the characters pushed.
    """
    is_cut = False
    """Whether the latest call's arguments, or its input, are incomplete."""
    _state: State

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._num_calls = 0
        self._raw = ""
        """Characters that are not consumed yet: they are the `rest` if the section ends here."""

    def push(self, char: str) -> list[CallEvent]:
        """Read the next character. Must not be called once `rest` is set."""
        self._raw += char
        return self._state(char)

    def finish(self) -> list[CallEvent]:
        """End the text, and return its last events. May set `rest`."""
        if self.rest is None:
            self.rest = "" if self._num_calls else self._raw
        return []

    def _end_with_rest(self) -> list[CallEvent]:
        self.rest = self._raw
        return []


class LayoutReader(SectionReader, Generic[Layout]):
    """Reads up to a call's arguments, and from the call's end to the next call.

    A subclass reads the arguments, beginning with `_begin_arguments`.
    """

    def __init__(self, layout: Layout, names: Collection[str], schemas: Schemas) -> None:
        super().__init__(names)
        self._layout: Layout = layout
        self._schemas = schemas
        """Of the functions' arguments."""
        self._name = self._id = ""
        self._expect([layout.opening + layout.before_name], self._before_name)
        if self._matcher.matched is not None:
            self._begin_name()

    def _begin_arguments(self) -> None:
        """Called after a call's start. Must set the state that reads its arguments."""
        raise NotImplementedError

    def _handle_mismatch(self) -> list[CallEvent]:
        """Called if the text around a name does not match the layout."""
        return self._end_with_rest()

    def _expect(self, texts: list[str], state: State) -> None:
        self._matcher, self._state = LiteralMatcher(texts), state

    def _before_name(self, char: str) -> list[CallEvent]:
        if not self._matcher.push(char):
            return self._handle_mismatch()
        if self._matcher.matched is not None:
            self._begin_name()
        return []

    def _begin_name(self) -> None:
        self._name = self._id = ""
        call_id = self._layout.id
        self._state = self._in_id if call_id is not None and call_id.after else self._in_name

    def _in_name(self, char: str) -> list[CallEvent]:
        if char in NAME_CHARS:
            self._name += char
            return []
        if not self._name and char.isspace():
            return []
        call_id = self._layout.id
        texts = [self._layout.after_name]
        if call_id is not None and call_id.before:
            texts = [call_id.before, *texts] if call_id.is_optional else [call_id.before]
        self._expect(texts, self._after_name)
        if self._matcher.matched is not None:  # nothing but whitespace follows the name
            events = self._start()
            return events if self.rest is not None else [*events, *self._state(char)]
        return self._after_name(char)

    def _after_name(self, char: str) -> list[CallEvent]:
        if not self._matcher.push(char):
            return self._handle_mismatch()
        match self._matcher.matched:
            case None:
                return []
            case 0 if self._layout.id is not None and self._layout.id.before:
                self._state = self._in_id
                return []
        return self._start()

    def _in_id(self, char: str) -> list[CallEvent]:
        if char in NAME_CHARS:
            self._id += char
            return []
        assert self._layout.id is not None
        after = self._layout.id.after
        self._expect([after or self._layout.after_name], self._after_id)
        return self._after_id(char)

    def _after_id(self, char: str) -> list[CallEvent]:
        call_id = self._layout.id
        assert call_id is not None
        is_wrong = not self._id
        if call_id.names_call == "name and id":
            is_wrong = re.fullmatch(call_id.pattern, self._id) is None
        if is_wrong or not self._matcher.push(char):
            return self._handle_mismatch()
        if self._matcher.matched is None:
            return []
        if not call_id.after:
            return self._start()
        self._state = self._in_name
        return []

    def _start(self) -> list[CallEvent]:
        if self._name not in self._names:
            return self._end_with_rest()
        self._num_calls += 1
        self.is_cut, self._raw = True, ""
        self._begin_arguments()
        return [CallStart(self._name, id=self._call_id())]

    def _call_id(self) -> str | None:
        call_id = self._layout.id
        if call_id is None or not self._id or call_id.names_call == "no":
            return None
        if call_id.names_call == "id":
            return self._id if re.fullmatch(call_id.pattern, self._id) else None
        prefix = self._layout.before_name.rpartition(">")[2]
        return f"{prefix}{self._name}{call_id.before}{self._id}"

    def _expect_next_call(self) -> None:
        """The latest call has ended: another one, or the end of the section, may follow."""
        layout = self._layout
        self.is_cut, self._raw = False, ""
        next_opening = layout.separator + layout.before_name
        self._expect(
            [next_opening, layout.closing] if layout.closing else [next_opening], self._between
        )

    def _between(self, char: str) -> list[CallEvent]:
        if not self._matcher.push(char):
            return self._handle_mismatch_between()
        if char == "]":  # the list's own end is part of the section whatever follows
            self._raw = ""
        match self._matcher.matched:
            case 0:
                self._begin_name()
            case 1:
                self.rest = ""
        return []

    def _handle_mismatch_between(self) -> list[CallEvent]:
        """Called if neither another call nor the end of the section follows a call."""
        return self._end_with_rest()
