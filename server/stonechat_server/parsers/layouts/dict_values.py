"""Scans and reads values in the notation of a `DictLayout`: `{a:1,b:[true,<|"|>text<|"|>]}`."""

import json
from collections.abc import Callable
from typing import Any

from stonechat_server.parsers.layouts.pythonic_calls import read_literal

_DECODER = json.JSONDecoder(strict=False)


class DictScanner:
    """Tracks nesting and strings. Strings stand between two `quote`, or are JSON strings."""

    def __init__(self, quote: str) -> None:
        self._quote = quote
        self._depth = 0
        self._tail = ""
        """Latest characters that may be part of a quote."""
        self._is_text = self._is_json = self._is_escaped = False

    @property
    def is_outside(self) -> bool:
        """Whether the next character is neither in a string nor nested."""
        return self._depth == 0 and not (self._is_text or self._is_json or self._tail)

    def push(self, char: str) -> None:
        """Scan a character."""
        if self._is_text:
            self._tail = (self._tail + char)[-len(self._quote) :]
            if self._tail == self._quote:
                self._is_text, self._tail = False, ""
        elif self._is_json:
            self._is_json = self._is_escaped or char != '"'
            self._is_escaped = not self._is_escaped and char == "\\"
        elif self._quote.startswith(self._tail + char):
            self._tail += char
            if self._tail == self._quote:
                self._is_text, self._tail = True, ""
        else:
            self._tail = ""
            self._is_json = char == '"'
            self._depth += (char in "{[") - (char in "}]")


def read_key(pair: str, quote: str) -> tuple[str, str]:
    """Split `key:value` into the key and the value's text."""
    return _Reader(pair, quote).key_and_rest()


def read_dict_value(text: str, quote: str) -> Any:
    """Read a value. Text that is not a value of this notation is a string, stripped."""
    reader = _Reader(text, quote)
    try:
        value = reader.value()
    except (ValueError, RecursionError):
        return text.strip()
    return value if reader.is_at_end() else text.strip()


class _Reader:
    """Reads a text from left to right. Raises `ValueError` for what is not a value."""

    def __init__(self, text: str, quote: str) -> None:
        self._text = text
        self._quote = quote
        self._position = 0

    def is_at_end(self) -> bool:
        self._begins("")
        return self._position == len(self._text)

    def key_and_rest(self) -> tuple[str, str]:
        key = self._key()
        self._skip(":")
        return key, self._text[self._position :]

    def value(self) -> Any:
        if self._begins(self._quote) or self._begins('"'):
            return self._string()
        if self._begins("["):
            return self._items("]", self.value)
        if self._begins("{"):
            return dict(self._items("}", self._pair))
        return read_literal(self._word(",]}"))

    def _items(self, end: str, read: Callable[[], Any]) -> list[Any]:
        self._position += 1
        items: list[Any] = []
        while not self._skip(end):
            items.append(read())
            if not self._skip(",") and not self._begins(end):
                raise ValueError(end)
        return items

    def _pair(self) -> tuple[str, Any]:
        key = self._key()
        if not self._skip(":"):
            raise ValueError(key)
        return key, self.value()

    def _key(self) -> str:
        is_string = self._begins(self._quote) or self._begins('"')
        return self._string() if is_string else self._word(":").strip()

    def _string(self) -> str:
        start, length = self._position, len(self._quote)
        if not self._begins(self._quote):
            value, self._position = _DECODER.raw_decode(self._text, start)
            return str(value)
        end = self._text.find(self._quote, start + length)
        end = len(self._text) if end < 0 else end
        self._position = min(end + length, len(self._text))
        return self._text[start + length : end]

    def _word(self, ends: str) -> str:
        start = self._position
        while self._position < len(self._text) and self._text[self._position] not in ends:
            self._position += 1
        return self._text[start : self._position]

    def _begins(self, text: str) -> bool:
        """Skip whitespace. Return whether what is left begins with `text`."""
        while self._text[self._position : self._position + 1].isspace():
            self._position += 1
        return self._text.startswith(text, self._position)

    def _skip(self, char: str) -> bool:
        is_next = self._begins(char)
        self._position += is_next
        return is_next
