"""Writing Lark grammars: literal text that may hold special tokens, choices, schemas."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

ANY_TEXT = "/(?s:.*)/"


class LarkWriter:
    """Writes for one vocabulary. `special_tokens`: ids of the tokens that text cannot spell."""

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
        """Exactly this text; nothing at all for an empty one."""
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
    """Plain text as a string of the grammar."""
    return json.dumps(text, ensure_ascii=False)


def json_value(schema: Mapping[str, Any] | bool) -> str:
    """A JSON value that validates against the schema."""
    return f"%json {json.dumps(schema, ensure_ascii=False)}"


def regex(pattern: str) -> str:
    """A whole text that matches the pattern (anchors at its ends are dropped)."""
    pattern = pattern.removeprefix("^")
    if re.search(r"(?<!\\)(?:\\\\)*\$$", pattern):
        pattern = pattern[:-1]
    escaped = re.sub(r"\\.|[/\n]", _escape, pattern, flags=re.DOTALL)
    return f"/{escaped}/" if escaped else '""'


def _escape(match: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n"}.get(match[0], match[0])


def choice(items: Iterable[str]) -> str:
    """One of the items."""
    return "( " + " | ".join(items) + " )"


def sequence(*items: str) -> str:
    """The items one after the other; empty ones do not count."""
    return " ".join(item for item in items if item)
