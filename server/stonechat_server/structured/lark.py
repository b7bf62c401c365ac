"""Writes parts of Lark grammars: literal text with special tokens, choices, parts in any order."""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from stonechat_models import any_of

ANY_TEXT = "/(?s:.*)/"
SPACE = r"/[ \t\r\n]{1,24}/"
"""Whitespace that may be written or left out. The limit stops models that repeat it."""
_GAP = re.compile(r"^\s+|\s*\n\s*|(?<=[>\]}])\s+|\s+(?=[<\[{])|\s+$")
_JSON_GAP = re.compile(r"\s+|(?<=[\[{,:\]}])|(?=[\]}])")
_GROUP = 60
_ANY = 63
"""The bit that is set once any part has been written."""


class LarkWriter:
    """Writes literal text for one vocabulary.

    `special_tokens` has the id of each special token by its text: the token's id must be written,
    because the characters of its text would be other tokens. The grammar must
    define the terminal `SPACE`.
    """

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._special_tokens = special_tokens
        self._pattern = re.compile(any_of(special_tokens))

    def is_special(self, text: str) -> bool:
        """Whether the whole text is one special token."""
        return text in self._special_tokens

    def begins_special(self, text: str) -> bool:
        """Whether the text begins with a special token."""
        return self._pattern.match(text) is not None

    def has_special(self, text: str) -> bool:
        """Whether a special token is part of the text."""
        return self._pattern.search(text) is not None

    def split_at_special(self, text: str) -> tuple[str, str]:
        """Split the text where its first special token begins, or at its end."""
        found = self._pattern.search(text)
        position = found.start() if found else len(text)
        return text[:position], text[position:]

    def literal(self, text: str) -> str:
        """An expression for exactly `text`; empty for an empty text."""
        return " ".join(
            f"<[{self._special_tokens[part]}]>" if part in self._special_tokens else quoted(part)
            for part in self._parts(text)
        )

    def spaced(self, text: str, *, is_json: bool = False) -> str:
        """An expression for `text` in which the whitespace next to tags and lines is free.

        There may be any whitespace or none. Whitespace within a tag stays. With `is_json`,
        whitespace is free wherever JSON allows it.
        """
        items: list[str] = []
        gap = _JSON_GAP if is_json else _GAP
        for part in self._parts(text):
            if part in self._special_tokens:
                items.append(self.literal(part))
                continue
            pieces = gap.split(part)
            for i, piece in enumerate(pieces):
                items += ["(SPACE)?"] * (i > 0) + [quoted(piece)] * bool(piece)
        return " ".join(item for item, _ in groupby(items))

    def _parts(self, text: str) -> list[str]:
        """Split `text` into special tokens and what stands between them."""
        parts, position = [], 0
        for match in self._pattern.finditer(text):
            parts += [text[position : match.start()], match[0]]
            position = match.end()
        return [part for part in (*parts, text[position:]) if part]


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


def without(chars: str, end: str) -> str:
    """A regex for what `chars` matches up to the first `end`, in a terminal that is lazy.

    `ANY_TEXT` needs no condition: it ends at the first `end`. Any other regex may not contain it.
    """
    if chars == ANY_TEXT:
        return chars
    inner = re.escape(end).replace("/", r"\/")
    return f"({chars} & ~/(?s:.*{inner}.*)/)"


def choice(items: Iterable[str]) -> str:
    """An expression for one of the items."""
    return "( " + " | ".join(items) + " )"


def sequence(*items: str) -> str:
    """An expression for the items in this order; empty items are left out."""
    return " ".join(item for item in items if item)


def text_of_length(schema: Mapping[str, Any]) -> str:
    """A terminal's expression for any text of the length that the schema of a string allows."""
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    return ANY_TEXT if (least, most) == (0, "") else f"/(?s:.{{{least},{most}}})/"


def lazy(rules: dict[str, str], name: str, chars: str, end: str) -> str:
    """Add the rule `name`: what `chars` matches, up to and including the first `end`."""
    rules[name.upper()] = f"{chars} {quoted(end)}"
    rules[f"{name}[lazy]"] = name.upper()
    return name


def any_order(
    parts: Mapping[str, str],
    required: Sequence[Collection[str]],
    rules: dict[str, str],
    name: str,
    *,
    needs_any: bool = False,
    separator: str = "",
) -> str:
    """An expression for `parts`, which are rules by key, in any order, each at most once.

    All keys of at least one of `required` are written; with `needs_any` at least one key,
    whichever it is. Of more than 60 parts, each 60 have any order, the required ones first. The
    rules that are added begin with `name`; their numbers (`name::_`) keep in bits what is written.
    """
    if not parts:
        return '""'
    demanded = frozenset[str]().union(*required)
    if len(required) > 1 and len(demanded) > _GROUP:
        return choice(
            any_order(parts, [keys], rules, f"{name}_{i}", needs_any=needs_any, separator=separator)
            for i, keys in enumerate(required)
        )
    keys = sorted(parts, key=lambda key: key not in demanded)
    for start in range(0, len(keys), _GROUP):
        group = keys[start : start + _GROUP]
        is_last = start + _GROUP >= len(keys)
        end = '""' if is_last else f"{name}_{start + _GROUP}::bit_and({1 << _ANY:#x})"
        condition = _one_of(group, required)
        if is_last and needs_any:
            condition = f"and({condition}, bit_set({_ANY}))"
        options = [f"{end} %if {condition}"]
        for bit, key in enumerate(group):
            marked = f"set_bit({bit})"
            if separator or needs_any:
                marked = f"bit_or({1 << _ANY | 1 << bit:#x})"
            rest = f"{parts[key]} {name}_{start}::{marked}"
            if separator:
                options.append(f"{separator} {rest} %if and(bit_clear({bit}), bit_set({_ANY}))")
            is_first = f"and(bit_clear({bit}), bit_clear({_ANY}))"
            options.append(f"{rest} %if {is_first if separator else f'bit_clear({bit})'}")
        rules[f"{name}_{start}::_"] = " | ".join(options)
    return f"{name}_0::0x0"


def _one_of(group: Sequence[str], required: Sequence[Collection[str]]) -> str:
    """The condition that all keys of one of the sets are written, as far as the group has them."""
    conditions = []
    for keys in required:
        condition = "true"
        for bit, key in enumerate(group):
            if key in keys:
                is_set = f"bit_set({bit})"
                condition = is_set if condition == "true" else f"and({condition}, {is_set})"
        conditions.append(condition)
    joined = conditions[0]
    for condition in conditions[1:]:
        joined = f"or({joined}, {condition})"
    return joined
