"""Holds back the end of a text that may become a stop string, and ends the text at one.

The rules say in which parts of the text stop strings count (see `StopRules`).
"""

from stonechat_models.text.stop_scope import ScopeTracker
from stonechat_models.text.stop_strings import StopMatch, StopStrings
from stonechat_models.types import StopRules


class StopFilter:
    """Filters the text of one choice, which arrives in pieces.

    The released pieces, joined, are the text up to the stop string. With `shows_stop` they include
    the stop string, so nothing is held back for it.
    """

    def __init__(self, strings: StopStrings, rules: StopRules, *, shows_stop: bool) -> None:
        """`strings` are those of `rules`. All choices of a request share them."""
        self.stop: str | None = None
        """The stop string that has ended the text."""
        self._strings = strings
        self._match: StopMatch | None = strings.new_match()
        """None once no stop string counts any more."""
        self._scope = ScopeTracker(rules.scope) if rules.scope else None
        self._call_markers = StopStrings(rules.never_after).new_match()
        self._never_first = rules.never_first
        self._is_blank = True
        self._shows_stop = shows_stop
        self._held = ""
        """The end of the text, which may become a stop string. With `shows_stop` it is released
        already."""

    def add(self, text: str, *, may_stop: bool = True, is_last: bool = False) -> str:
        """Return what can be released once `text` follows. If it ends the text, `stop` is set.

        Without `may_stop`, a stop string that is completed in `text` does not count. `is_last`
        releases what is held back, as nothing follows.
        """
        pieces = [(text, True)] if self._scope is None else self._scope.split(text, is_last)
        released = ""
        for piece, is_in_scope in pieces:
            if not is_in_scope:
                released += self._add_reasoning(piece)
                continue
            released += self._add_answer(piece, may_stop)
            if self.stop is not None:
                break
        return released + self._release_held() if is_last else released

    def _add_reasoning(self, text: str) -> str:
        if self._match is not None:
            self._match = self._strings.new_match()
        return self._release_held() + text

    def _add_answer(self, text: str, may_stop: bool) -> str:
        if self._match is None or not text:
            return text
        start = self._unstoppable_start(text)
        if start < 0:
            return self._search(self._match, text, may_stop)
        released = self._search(self._match, text[:start], may_stop)
        if self.stop is None:
            self._match = None
            released += self._release_held() + text[start:]
        return released

    def _unstoppable_start(self, text: str) -> int:
        """Return the index in `text` from which no stop string counts any more, or -1."""
        stripped = text.lstrip() if self._is_blank else ""
        if stripped:
            self._is_blank = False
            if stripped[0] == self._never_first:
                return len(text) - len(stripped)
        return self._call_markers.find(text)[0]

    def _search(self, match: StopMatch, text: str, may_stop: bool) -> str:
        """Search `text` for stop strings. Return what is released of it and of the held text."""
        joined, num_old = self._held + text, len(self._held)
        first = num_old if self._shows_stop else 0
        if may_stop:
            end, stop = match.find(text)
            if end >= 0:
                self.stop, self._held = stop, ""
                end += num_old if self._shows_stop else num_old - len(stop)
                return joined[first:end]
        else:
            match.skip(text)
        split = len(joined) - match.num_held
        self._held = joined[split:]
        return joined[first:] if self._shows_stop else joined[:split]

    def _release_held(self) -> str:
        held, self._held = self._held, ""
        return "" if self._shows_stop else held
