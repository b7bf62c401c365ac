"""Matches fixed text character by character, whitespace aside."""

from collections.abc import Sequence


class LiteralMatcher:
    """Compares what comes with several texts at once; whitespace is skipped on both sides."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [_squeeze(text) for text in texts]
        self._seen = ""
        self.raw = ""
        """All characters pushed."""

    @property
    def matched(self) -> int | None:
        """Index of a text that is complete now."""
        return self._texts.index(self._seen) if self._seen in self._texts else None

    def push(self, char: str) -> bool:
        """False if no text goes on like this."""
        self.raw += char
        if char.isspace():
            return True
        self._seen += char
        return any(text.startswith(self._seen) for text in self._texts)


def _squeeze(text: str) -> str:
    return "".join(text.split())
