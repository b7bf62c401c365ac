"""Prepares JSON schemas for llguidance: rewrites or refuses what it would enforce too loosely.

A rewritten schema accepts the same documents as the original, or fewer, never more:

- An object that declares `properties` and does not mention others accepts no others. Exception: if
  the schema joins parts with `allOf` or the like, closing one part could exclude every document.
- `format` of dates and times becomes a pattern that knows the calendar and has no leap seconds.
- Host names have no labels such as `xn--ab`, which no pattern could check.
- Numbers have bounds, and those are short and inclusive (see `numbers`).
- In a `pattern`, `\\s` matches only what both ECMA 262 and Python call whitespace, and `\\S` only
  what neither does.
- Parts whose recursion never ends are `False` (see `recursion`).
- Keywords without effect, such as `uniqueItems: false`, are removed.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.schemas.annotations import IDENTIFIERS
from stonechat_models.grammar.schemas.limits import check_expression
from stonechat_models.grammar.schemas.numbers import bound_number, share_numbers
from stonechat_models.grammar.schemas.plain_schema import plain_schema
from stonechat_models.grammar.schemas.recursion import without_endless
from stonechat_models.grammar.schemas.schema_tree import Schema, change_children, nodes, values

MAX_PROPERTIES = 1_000
"""Per object. The cost of optional properties grows with the square of their number."""

# At most one run of whitespace between two JSON tokens: a space, or a line break and indentation.
WHITESPACE = r" |\n {0,16}"
COMPILE_OPTIONS = {"whitespace_pattern": WHITESPACE, "json_allowed_escapes": 'nrbtf\\"'}
"""Without `\\u` a key has one spelling: no declared property can be spelled in another way."""

_CONJUNCTIONS = frozenset(("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"))
_REQUIREMENTS = frozenset(("required", "type", "properties", "additionalProperties"))
_OBJECT_KEYS = frozenset(("properties", "required", "additionalProperties", "patternProperties"))
_OTHER_PROPERTIES = frozenset(
    ("additionalProperties", "patternProperties", "unevaluatedProperties")
)

_YEAR = "[0-9]{4}"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
_ZONE = r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_LETTER, _INNER = "[A-Za-z0-9]", "[A-Za-z0-9-]"
_LABEL = (
    f"{_LETTER}(?:{_INNER}{{0,2}}{_LETTER}"
    f"|{_INNER}(?:{_LETTER}{_INNER}|-{_LETTER}){_INNER}{{0,58}}{_LETTER})?"
)
_FORMATS: dict[str, Schema] = {
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": f"^{_TIME}{_ZONE}$"},
    "date-time": {"pattern": f"^{_DATE}T{_TIME}{_ZONE}$"},
    "hostname": {"pattern": rf"^{_LABEL}(?:\.{_LABEL})*$", "maxLength": 253},
}
_UNWRITABLE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]|\\[0acepuvx]")
"""What in a pattern may stand for a character that no answer has."""
_WRITABLE = {"pattern": r"^[^\x00-\x07\x0b\x0e-\x1f\x7f]*$"}
_SPACE = r"[ \t\n\r\f\v]"
_NOT_SPACE = r"[^\s\uFEFF\x1c-\x1f]"


def prepare_schema(source: str) -> str:
    """Return the schema for llguidance, with options. Raises `GrammarError` if it is refused."""
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the JSON schema is not valid JSON: {error}") from error
    return json.dumps(prepare_value(schema), ensure_ascii=False)


def prepare_value(schema: object) -> dict[str, Any]:
    """Do as `prepare_schema` for a parsed schema. The argument does not change."""
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise GrammarError("a JSON schema must be an object or a boolean")
    plain = without_endless(plain_schema(schema))
    if isinstance(plain, bool):
        raise GrammarError("no output can satisfy this JSON schema: its recursion never ends")
    can_close = not any(_joins_objects(node) for node in nodes(plain))
    prepared = _prepare(plain, can_close)
    if not any(IDENTIFIERS & node.keys() for node in nodes(plain)):  # they change what `#` means
        prepared = share_numbers(prepared)
    return {**prepared, "x-guidance": COMPILE_OPTIONS}


def _strings(value: object) -> Iterator[str]:
    """Yield all strings in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
    for child in values(value):
        yield from _strings(child)


def _joins_objects(node: dict[str, Any]) -> bool:
    """Return whether several parts of this node apply to the same object."""
    parts = node.get("allOf")
    if isinstance(parts, list) and len(parts) > 1:
        return True
    keys = [key for key in _CONJUNCTIONS & node.keys() if not _only_requires(node, key)]
    return len(keys) > 1 or (len(keys) == 1 and bool(_OBJECT_KEYS & node.keys()))


def _only_requires(node: Schema, key: str) -> bool:
    """Return whether all parts of the keyword `key` only require properties that `node` has, or
    forbid some of them (see `exclusive_keys`)."""
    parts, properties = node[key], node.get("properties")
    if not isinstance(parts, list) or not isinstance(properties, dict):
        return False
    for part in parts:
        if not isinstance(part, dict) or part.keys() - _REQUIREMENTS:
            return False
        forbidden = part.get("properties", {})
        if not isinstance(forbidden, dict) or any(v is not False for v in forbidden.values()):
            return False
        if part.get("additionalProperties", True) is not True:
            return False
        required = part.get("required", [])
        if not isinstance(required, list) or set(map(str, required)) - properties.keys():
            return False
        if forbidden.keys() - properties.keys():
            return False
    return True


def _prepare(node: dict[str, Any], can_close: bool) -> dict[str, Any]:
    prepared = change_children(node, lambda child, _: _prepare(child, can_close))
    if "$ref" in prepared and "$id" in prepared:
        raise GrammarError("a JSON schema with $id beside $ref is not supported")
    _check_texts(prepared)
    _check_min_properties(prepared)
    _replace_format(prepared)
    bound_number(prepared)
    if isinstance(prepared.get("pattern"), str):
        if _CONTROL.search(prepared["pattern"]):  # llguidance looks for a match only without this
            prepared["allOf"] = [*prepared.get("allOf", []), _WRITABLE]
        prepared["pattern"] = portable_pattern(prepared["pattern"])
    if isinstance(named := prepared.get("patternProperties"), dict):
        prepared["patternProperties"] = {portable_pattern(n): child for n, child in named.items()}
    if can_close and _is_open_record(prepared):
        prepared["additionalProperties"] = False
    return prepared


def _check_texts(node: dict[str, Any]) -> None:
    """Refuse too many properties, and fixed texts that need a `\\u` escape to be written."""
    fixed_values = [node.get(key) for key in ("const", "enum", "required")]
    properties = node.get("properties")
    if isinstance(properties, dict):
        fixed_values.append(list(properties))
        if len(properties) > MAX_PROPERTIES:
            raise GrammarError(f"an object of the JSON schema has over {MAX_PROPERTIES} properties")
    if any(_UNWRITABLE.search(text) for text in _strings(fixed_values)):
        raise GrammarError("a JSON schema must not demand control characters or lone surrogates")


def _check_min_properties(node: dict[str, Any]) -> None:
    """Refuse a `minProperties` that needs two undeclared keys: they could be the same key."""
    minimum = node.get("minProperties", 0)
    required = node.get("required", [])
    if not isinstance(minimum, int | float) or not isinstance(required, list):
        return
    if minimum > len(required) + 1:
        raise GrammarError(
            "minProperties is only supported up to one more than the number of required properties"
        )


def _replace_format(node: dict[str, Any]) -> None:
    name = node.get("format")
    limits = _FORMATS.get(name) if isinstance(name, str) else None
    if limits is None:
        return
    del node["format"]
    if limits.keys() & node.keys():
        node["allOf"] = [*node.get("allOf", []), limits]
    else:
        node.update(limits)


def portable_pattern(pattern: str) -> str:
    """Return `pattern` with whitespace classes that every reader of the schema reads alike."""
    check_expression(len(pattern), "a pattern")
    parts: list[str] = []
    in_class = False
    for match in re.finditer(r"\\.|.", pattern, re.DOTALL):
        text = match[0]
        if text == "[" and not in_class:
            in_class = True
        elif text == "]" and in_class:
            in_class = False
        elif not in_class and text in (r"\s", r"\S"):
            text = _SPACE if text == r"\s" else _NOT_SPACE
        parts.append(text)
    return "".join(parts)


def _is_open_record(node: dict[str, Any]) -> bool:
    properties = node.get("properties")
    if not isinstance(properties, dict) or _OTHER_PROPERTIES & node.keys():
        return False
    required = node.get("required", [])
    return isinstance(required, list) and set(map(str, required)) <= properties.keys()
