"""What readers of sections have in common where a layout gives the texts around names."""

from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from stonechat_server.parsers.literal import LiteralMatcher
from stonechat_server.tool_formats.layout import CallEvent, JsonLayout, TagLayout

NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")

Layout = TypeVar("Layout", JsonLayout, TagLayout)
State = Callable[[str], list[CallEvent]]


class LayoutReader(Generic[Layout]):
    """The part of a `SectionReader` up to a call's name, and from its end to the next call.

    What comes between is the subclass's, from its `_in_name` on.
    """

    rest: str | None = None
    is_cut: bool = False

    def __init__(self, layout: Layout, names: Collection[str]) -> None:
        self._layout: Layout = layout
        self._names = names
        self._num_calls = 0
        self._raw = ""
        """Characters since the last point at which all were used."""
        self._name = ""
        self._matcher = LiteralMatcher([layout.opening + layout.before_name])
        is_named_first = self._matcher.matched is not None
        self._state: State = self._in_name if is_named_first else self._before_name

    def push(self, char: str) -> list[CallEvent]:
        self._raw += char
        return self._state(char)

    def _in_name(self, char: str) -> list[CallEvent]:
        raise NotImplementedError

    def _misread(self) -> list[CallEvent]:
        """The section does not begin as the layout says."""
        return self._broken()

    def _expect(self, texts: list[str], state: State) -> None:
        self._matcher, self._state = LiteralMatcher(texts), state

    def _broken(self) -> list[CallEvent]:
        self.rest = self._raw
        return []

    def _before_name(self, char: str) -> list[CallEvent]:
        if not self._matcher.push(char):
            return self._misread()
        if self._matcher.matched is not None:
            self._begin_name()
        return []

    def _begin_name(self) -> None:
        self._name, self._state = "", self._in_name

    def _expect_next_call(self) -> None:
        layout = self._layout
        again = layout.separator + layout.before_name
        self._expect([again, layout.closing] if layout.closing else [again], self._between)

    def _between(self, char: str) -> list[CallEvent]:
        if not self._matcher.push(char):
            return self._misread_between()
        match self._matcher.matched:
            case 0:
                self._begin_name()
            case 1:
                self.rest = ""
        return []

    def _misread_between(self) -> list[CallEvent]:
        """What follows a call is neither another one nor the end of the section."""
        return self._broken()
