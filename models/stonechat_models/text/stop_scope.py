"""Follows a text into and out of the part that stop strings count in (see `StopScope`)."""

from stonechat_models.text.stop_strings import StopStrings
from stonechat_models.types import StopScope


class ScopeTracker:
    """Splits one text, which arrives in pieces, at the borders of its scope.

    Where the text may begin reasoning it waits until it does, or does not.
    """

    def __init__(self, scope: StopScope) -> None:
        self._after = StopStrings(scope.after)
        self._until = StopStrings(scope.until)
        self._unless = scope.unless
        self._is_opening = bool(scope.unless)
        self._waiting = ""
        self._counts = False
        self._match = self._after.new_match()

    def split(self, text: str, is_last: bool = False) -> list[tuple[str, bool]]:
        """The pieces that can be told so far, and whether stop strings count in each."""
        if self._is_opening:
            text = self._waiting + text
            begun = text.lstrip()
            if not is_last and begun != self._unless and self._unless.startswith(begun):
                self._waiting = text
                return []
            self._is_opening = False
            if not begun.startswith(self._unless):
                self._turn()
        pieces: list[tuple[str, bool]] = []
        while text:
            end, mark = self._match.find(text)
            if end < 0:
                pieces.append((text, self._counts))
                break
            start = max(0, end - len(mark)) if self._counts else 0
            pieces += [(text[:start], True)] if start else []
            pieces.append((text[start:end], False))
            text = text[end:]
            self._turn()
        return pieces

    def _turn(self) -> None:
        self._counts = not self._counts
        self._match = (self._until if self._counts else self._after).new_match()
