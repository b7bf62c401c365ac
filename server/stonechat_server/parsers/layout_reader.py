"""The common part of section readers whose layout defines the texts around names."""

from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from stonechat_server.parsers.literal import LiteralMatcher
from stonechat_server.tool_formats.layout import CallEvent, JsonLayout, TagLayout

NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")

Layout = TypeVar("Layout", JsonLayout, TagLayout)
State = Callable[[str], list[CallEvent]]


class LayoutReader(Generic[Layout]):
    """Reads up to a call's name, and from the call's end to the next call.

    A subclass is a `SectionReader`. It reads what lies between, beginning with `_in_name`.
    """

    rest: str | None = None
    is_cut: bool = False

    def __init__(self, layout: Layout, names: Collection[str]) -> None:
        self._layout: Layout = layout
        self._names = names
        self._num_calls = 0
        self._raw = ""
        """Characters that are not consumed yet: they are the `rest` if the section ends here."""
        self._name = ""
        self._matcher = LiteralMatcher([layout.opening + layout.before_name])
        is_named_first = self._matcher.matched is not None
        self._state: State = self._in_name if is_named_first else self._before_name

    def push(self, char: str) -> list[CallEvent]:
        self._raw += char
        return self._state(char)

    def _in_name(self, char: str) -> list[CallEvent]:
        raise NotImplementedError

    def _handle_mismatch(self) -> list[CallEvent]:
        """Called if the text around a name does not match the layout."""
        return self._end_with_rest()

    def _expect(self, texts: list[str], state: State) -> None:
        self._matcher, self._state = LiteralMatcher(texts), state

    def _end_with_rest(self) -> list[CallEvent]:
        self.rest = self._raw
        return []

    def _before_name(self, char: str) -> list[CallEvent]:
        if not self._matcher.push(char):
            return self._handle_mismatch()
        if self._matcher.matched is not None:
            self._begin_name()
        return []

    def _begin_name(self) -> None:
        self._name, self._state = "", self._in_name

    def _expect_next_call(self) -> None:
        layout = self._layout
        next_opening = layout.separator + layout.before_name
        self._expect(
            [next_opening, layout.closing] if layout.closing else [next_opening], self._between
        )

    def _between(self, char: str) -> list[CallEvent]:
        if not self._matcher.push(char):
            return self._handle_mismatch_between()
        match self._matcher.matched:
            case 0:
                self._begin_name()
            case 1:
                self.rest = ""
        return []

    def _handle_mismatch_between(self) -> list[CallEvent]:
        """Called if neither another call nor the end of the section follows a call."""
        return self._end_with_rest()
