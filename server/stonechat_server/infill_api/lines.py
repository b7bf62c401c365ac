"""Ends a text that is filled in where an editor has no more use for it."""

import re
import time
from collections.abc import Callable

from stonechat_server.parsers.deltas import ContentParser, EndDelta, ParsedDelta

_LINE_BREAKS = re.compile(r"\n\s*")


class LineEnds(ContentParser):
    """A `DeltaParser` that ends the text before a line that is indented less than `indent`.

    The first line counts as indented. With `max_seconds`, a text with a line break also ends so
    long after it began. Line breaks are held back until the next line's indentation is known.
    """

    def __init__(
        self, indent: int, max_seconds: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._indent = indent
        self._max_seconds = max_seconds
        self._now = now
        self._began: float | None = None
        """When the first text came."""
        self._held = ""
        self._has_lines = False

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        now = self._now()
        self._began = now if self._began is None else self._began
        text, self._held = self._held + text, ""
        for match in _LINE_BREAKS.finditer(text):
            self._has_lines = True
            if match.end() == len(text) and not finished:
                text, self._held = text[: match.start()], match[0]
                break
            indent = match.end() - match[0].rfind("\n") - match.start() - 1
            if indent < self._indent and match.end() < len(text):
                return [*super().feed(text[: match.start()], finished), EndDelta()]
        deltas = super().feed(text, finished)
        is_late = 0 < self._max_seconds < now - self._began
        return [*deltas, EndDelta()] if is_late and self._has_lines and not finished else deltas
