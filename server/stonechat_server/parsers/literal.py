"""Matches fixed text character by character, and ignores whitespace."""

from collections.abc import Sequence


class LiteralMatcher:
    """Compares the input with several texts at once. Whitespace is ignored in both."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [_squeeze(text) for text in texts]
        self._input = ""
        self.raw = ""
        """All characters pushed."""

    @property
    def matched(self) -> int | None:
        """Index of the text that the input equals, or None."""
        return self._texts.index(self._input) if self._input in self._texts else None

    def push(self, char: str) -> bool:
        """Add a character. False if no text begins with the input any more."""
        self.raw += char
        if char.isspace():
            return True
        self._input += char
        return any(text.startswith(self._input) for text in self._texts)


def _squeeze(text: str) -> str:
    return "".join(text.split())
