"""Writes parts of Lark grammars: literal text with special tokens, choices, JSON schemas."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

ANY_TEXT = "/(?s:.*)/"


class LarkWriter:
    """Writes literal text for one vocabulary.

    `special_tokens` has the id of each special token by its text: the token's id must be written,
    because the characters of its text would be other tokens.
    """

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._special_tokens = special_tokens
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def is_special(self, text: str) -> bool:
        """Whether the whole text is one special token."""
        return text in self._special_tokens

    def has_special(self, text: str) -> bool:
        """Whether a special token is part of the text."""
        return self._pattern.search(text) is not None

    def literal(self, text: str) -> str:
        """An expression for exactly `text`; empty for an empty text."""
        items: list[str] = []
        position = 0
        for match in self._pattern.finditer(text):
            items += [quoted(text[position : match.start()])] if match.start() > position else []
            items.append(f"<[{self._special_tokens[match[0]]}]>")
            position = match.end()
        if position < len(text):
            items.append(quoted(text[position:]))
        return " ".join(items)


def quoted(text: str) -> str:
    """`text`, which has no special tokens, as a string of the grammar."""
    return json.dumps(text, ensure_ascii=False)


def json_value(schema: Mapping[str, Any] | bool) -> str:
    """An expression for a JSON value that validates against `schema`."""
    return f"%json {json.dumps(schema, ensure_ascii=False)}"


def regex(pattern: str) -> str:
    """An expression for a text that matches all of `pattern`; anchors at its ends are removed."""
    pattern = pattern.removeprefix("^")
    if re.search(r"(?<!\\)(?:\\\\)*\$$", pattern):
        pattern = pattern[:-1]
    escaped = re.sub(r"\\.|[/\n]", _escape, pattern, flags=re.DOTALL)
    return f"/{escaped}/" if escaped else '""'


def _escape(match: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n"}.get(match[0], match[0])


def choice(items: Iterable[str]) -> str:
    """An expression for one of the items."""
    return "( " + " | ".join(items) + " )"


def sequence(*items: str) -> str:
    """An expression for the items in this order; empty items are left out."""
    return " ".join(item for item in items if item)
