"""Scan text that arrives character by character: a JSON value up to its end, or fixed text."""

from collections.abc import Sequence
from dataclasses import dataclass

_OPENERS, _CLOSERS = "{[", "}]"


@dataclass(slots=True)
class JsonScanner:
    """Tracks nesting and strings. It does not check that the value is valid.

    `quotes` are the characters that delimit strings: both kinds for Python literals.
    """

    quotes: str = '"'
    depth: int = 0
    quote: str | None = None
    is_escaped: bool = False

    def push(self, char: str) -> bool:
        """Scan a character. True if it ends an object or array that began at depth 0."""
        if self.quote is not None:
            self._push_in_string(char)
            return False
        if char in self.quotes:
            self.quote = char
        elif char in _OPENERS:
            self.depth += 1
        elif char in _CLOSERS:
            self.depth -= 1
            return self.depth == 0
        return False

    def _push_in_string(self, char: str) -> None:
        if self.is_escaped:
            self.is_escaped = False
        elif char == "\\":
            self.is_escaped = True
        elif char == self.quote:
            self.quote = None

    @property
    def is_outside(self) -> bool:
        """Whether the next character is neither in a string nor nested."""
        return self.depth == 0 and self.quote is None


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
