"""Finds the parts of a text in which stop strings count (see `StopScope`)."""

from stonechat_models.text.stop_strings import StopStrings
from stonechat_models.types import StopScope


class ScopeTracker:
    """Splits a text that arrives in pieces where stop strings start or cease to count.

    Text that may begin reasoning is held back until it is clear whether it does.
    """

    def __init__(self, scope: StopScope) -> None:
        self._after = StopStrings(scope.after)
        self._until = StopStrings(scope.until)
        self._unless = scope.unless
        self._is_opening = bool(scope.unless)
        self._pending = ""
        self._is_counting = False
        self._match = self._after.new_match()

    def split(self, text: str, is_last: bool = False) -> list[tuple[str, bool]]:
        """Return the pieces that are decided so far, each with whether stop strings count in it."""
        if self._is_opening:
            text = self._pending + text
            stripped = text.lstrip()
            if not is_last and stripped != self._unless and self._unless.startswith(stripped):
                self._pending = text
                return []
            self._is_opening = False
            if not stripped.startswith(self._unless):
                self._toggle()
        pieces: list[tuple[str, bool]] = []
        while text:
            end, marker = self._match.find(text)
            if end < 0:
                pieces.append((text, self._is_counting))
                break
            start = max(0, end - len(marker)) if self._is_counting else 0
            pieces += [(text[:start], True)] if start else []
            pieces.append((text[start:end], False))
            text = text[end:]
            self._toggle()
        return pieces

    def _toggle(self) -> None:
        self._is_counting = not self._is_counting
        self._match = (self._until if self._is_counting else self._after).new_match()
