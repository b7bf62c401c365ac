"""Finds where in a text each of its tokens begins."""

import codecs
from collections.abc import Iterable


class TextOffsets:
    """Counts the characters of a text while the bytes of its tokens are added.

    A token may be a part of a character. Invalid bytes count as U+FFFD, as they read in the text.
    """

    def __init__(self, start: int = 0) -> None:
        """`start` is the number of characters before the first token."""
        self._num_characters = start
        self._pending = b""

    def add(self, data: bytes) -> int:
        """Add a token's bytes. Returns the index of the character in which it begins."""
        offset = self._start_of(data)
        text, num_used = codecs.utf_8_decode(self._pending + data, "replace", False)
        self._num_characters += len(text)
        self._pending = (self._pending + data)[num_used:]
        return offset

    def _start_of(self, data: bytes) -> int:
        """The unfinished character if `data` continues it, else the next one."""
        if not self._pending or not data:
            return self._num_characters
        joined = self._pending + data[:1]
        text, _ = codecs.utf_8_decode(joined, "replace", False)
        is_cut_off = text.startswith("\ufffd") and joined != "\ufffd".encode()
        return self._num_characters + is_cut_off


def as_shown(pieces: Iterable[bytes], text: str) -> list[bytes]:
    """The bytes of tokens as `text` shows them: some tokenizers drop a space at the start."""
    shown = list(pieces)
    first = next((i for i, piece in enumerate(shown) if piece), None)
    if first is not None and shown[first].startswith(b" ") and not text.startswith(" "):
        shown[first] = shown[first][1:]
    return shown
