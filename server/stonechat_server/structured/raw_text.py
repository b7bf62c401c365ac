"""Tells how strings may stand between tags as they are, where JSON may stand too.

These are strings of a schema that `tag_values` reads as JSON: with a pattern or a format, or next
to other types. What is written raw here is read back as a string that the schema allows.
"""

import re
from collections.abc import Mapping
from typing import Any

from stonechat_server.parsers.layouts.tag_values import read_value, resolve
from stonechat_server.structured.lark import choice, quoted, regex, text_of_length

_ANNOTATIONS = frozenset(("title", "description", "default", "examples", "$comment", "deprecated"))
_MAX_DEPTH = 1
_TYPES = ("string", "number", "boolean", "null", "array", "object")
_READ_FROM_TEXT = frozenset(("integer", "number", "boolean"))
_LISTS = frozenset(("enum", "const"))
_NO_LITERAL = r"/[^\s\"'\[({<]((?s:.*)[^\s])?/"
"""Text that cannot be read as a quoted string, a list or an object."""
_FREE = r"/[^\s\"'\[({<0-9+.\-]((?s:.*)[^\s])?/"
"""Text that cannot be read as a number either."""
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,60}[A-Za-z0-9])?"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_DAY = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_LONG_DAY = "[0-9]{4}-(((0[13-9]|1[0-2])-(29|30))|((0[13578]|1[02])-31))"
_DATE = f"({_DAY}|{_LONG_DAY})"
_TIME = (
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+\-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_CLASSES = {r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]"}
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": rf"{_OCTET}(\.{_OCTET}){{3}}",
    "email": rf"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@{_LABEL}(\.{_LABEL})+",
    "uri": rf"https?://{_LABEL}(\.{_LABEL})*(:[0-9]{{1,5}})?(/[A-Za-z0-9._~/-]*)?"
    r"(\?[A-Za-z0-9._~/=&-]*)?(#[A-Za-z0-9._~-]*)?",
}
"""Regexes of common texts of a format. They may allow less than the format."""


def raw_text(value: object, schema: Mapping[str, Any]) -> str | None:
    """A terminal's expression for the strings that may be written raw. None: there are none.

    `schema` has the definitions to which `value` may refer.
    """
    options = _options(value, schema)
    if options is None:
        return None
    kinds = {option["type"] for option in options}
    has_bounds = any(o["type"] in ("integer", "number") and o.keys() != {"type"} for o in options)
    texts = [
        _option_text(
            option,
            value,
            is_alone=kinds.isdisjoint(_READ_FROM_TEXT),
            free=_FREE if has_bounds else _NO_LITERAL,
        )
        for option in options
        if option["type"] == "string" and (option.keys() & _LISTS or not _lists_words(options))
    ]
    found = [text for text in texts if text is not None]
    return choice(found) if found else None


def is_open(text: str) -> bool:
    """Whether an expression of `raw_text` may match a text with a tag in it."""
    return _NO_LITERAL in text or _FREE in text


def _options(
    value: object, schema: Mapping[str, Any], depth: int = 0
) -> list[dict[str, Any]] | None:
    """The alternatives of a value, each of one type; None if it is not made of such."""
    if value is True:
        value = {}
    if not isinstance(value, dict) or depth > _MAX_DEPTH:
        return None
    value = {key: item for key, item in value.items() if key not in _ANNOTATIONS}
    if not value:
        return [{"type": name} for name in _TYPES]
    if "const" in value and "enum" not in value:
        value["enum"] = [value.pop("const")]
    if value.keys() in ({"anyOf"}, {"oneOf"}):
        found: list[dict[str, Any]] = []
        for option in next(iter(value.values())):
            options = _options(resolve(option, schema), schema, depth + 1)
            if options is None:
                return None
            found += options
        num_texts = sum(option["type"] == "string" for option in found)
        return None if "oneOf" in value and num_texts > 1 else found
    types = value.get("type")
    if isinstance(types, list):
        return [{**value, "type": name} for name in types]
    if types is None and value.keys() == {"enum"}:
        texts = [item for item in value["enum"] if isinstance(item, str)]
        return [{"type": "string", "enum": texts}] if texts else None
    return [{**value, "type": types}] if isinstance(types, str) else None


def _lists_words(options: list[dict[str, Any]]) -> bool:
    """Whether the alternatives allow some of `true`, `false` and `null`, but not all of a type."""
    return any(
        option["type"] in ("boolean", "null") and option.keys() & _LISTS for option in options
    )


def _option_text(
    option: Mapping[str, Any], value: object, *, is_alone: bool, free: str
) -> str | None:
    """`is_alone`: no other alternative would be read from a text of this one.

    `free` is any text. If it may be a number, then the schema allows that number or its text.
    """
    keys = option.keys() - {"type"}
    if keys == {"enum"}:
        literals = [text for text in option["enum"] if _reads_as_itself(text, value)]
        return choice(map(quoted, literals)) if literals else None
    if not keys:
        return free
    if keys <= {"minLength", "maxLength"}:
        return f"({text_of_length(option)} & {_FREE})"
    if not is_alone:
        return None
    if keys == {"format"} and option["format"] in _FORMATS:
        return f"/{_FORMATS[option['format']].replace('/', chr(92) + '/')}/"
    if keys == {"pattern"} and _is_whole(option["pattern"]):
        return f"({regex(_with_ascii_classes(option['pattern']))} & {_NO_LITERAL})"
    return None


def _with_ascii_classes(pattern: str) -> str:
    """The pattern with `\\d` and `\\w` as ECMA 262 reads them, and as a JSON string has them."""
    return re.sub(r"\\.", lambda match: _CLASSES.get(match[0], match[0]), pattern)


def _reads_as_itself(text: object, value: object) -> bool:
    if not isinstance(text, str) or not text or text != text.strip() or "<" in text:
        return False
    return text[0] not in "\"'[({" and read_value(text, value) == text


def _is_whole(pattern: str) -> bool:
    """Whether the pattern describes the whole text, and every regex engine reads it alike."""
    if not (pattern.startswith("^") and pattern.endswith("$")):
        return False
    if re.search(r"\\[^dwDW.+*?/|(){}\[\]^$\\-]|\\$", pattern):
        return False
    inner = re.sub(r"\\.|\[\^?(?:\\.|[^\]\\])+\]", "", pattern[1:-1]).replace("(?:", "(")
    if re.search(r"[\^$]|\(\?", inner):
        return False
    count = 1
    while count:
        inner, count = re.subn(r"\([^()]*\)", "", inner)
    return "|" not in inner
