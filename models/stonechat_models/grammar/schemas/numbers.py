"""Bounds numbers: their size and their digits, which the types of a schema do not.

A model that has written `1.000` may go on with zeros up to its token limit. A second grammar, which
each token must follow too, allows any JSON whose numbers have a bounded length. It takes all that
Python and JavaScript write for 64-bit floats. A number can be cut at that length, because its
schema's own bounds are short and inclusive (see `bound_number`).
"""

import json
import re
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, TypeGuard

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.schemas.schema_tree import (
    NUMBER_KEYS,
    Path,
    Schema,
    change_children,
    nodes,
    values,
)

MAX_INTEGER = 2**63 - 1024
MAX_NUMBER = 10**18
"""Bounds beyond these, which llguidance does not know, become these."""
MAX_DIGITS = 21
"""Before the point. JavaScript writes up to 21."""
MAX_DECIMALS = 24
_BOUND_DIGITS = 15
"""llguidance reads longer bounds inexactly."""
_BOUND_DECIMALS = 22

_DIGITS = f"-?(0|[1-9][0-9]{{0,{MAX_DIGITS - 1}}})"
NUMBER = rf"{_DIGITS}(\.[0-9]{{1,{MAX_DECIMALS}}})?([eE][+-]?[0-9]{{1,3}})?"
_OTHERS = frozenset(("$ref", "allOf", "anyOf", "oneOf", "enum", "const"))


def bounded_json(options: dict[str, Any]) -> str:
    """A Lark grammar of any JSON value with bounded numbers, written with these options."""
    text = json.dumps({"type": "string", "x-guidance": options})
    return f"""
start: value
value: "null" | "true" | "false" | NUMBER | string | list | object
list: "[" gap (value (gap "," gap value)* gap)? "]"
object: "{{" gap (pair (gap "," gap pair)* gap)? "}}"
pair: string gap ":" gap value
string: %json {text}
gap: SPACE?
NUMBER: /{NUMBER}/
SPACE: /{options["whitespace_pattern"]}/
"""


def bound_number(node: Schema) -> None:
    """Give the numbers that `node` describes bounds, and bounds that are short.

    An integer has at most 64 bits, so that it ends and most readers keep its value. The bounds of
    other numbers are inclusive, and are rounded inwards to a few digits. Raises `GrammarError` if
    no number is left, or a bound is none.
    """
    for key in NUMBER_KEYS & node.keys():
        is_flag = isinstance(node[key], bool) and key.startswith("exclusive")  # as in draft 4
        if not is_flag and not is_number(node[key]):
            raise GrammarError(f"{key} of a JSON schema must be a number")
    types = node.get("type")
    kinds = types if isinstance(types, list) else [types]
    is_any = "number" in kinds or (types is None and not NUMBER_KEYS.isdisjoint(node))
    if not is_any and "integer" not in kinds:
        return
    limit = MAX_NUMBER if is_any else MAX_INTEGER
    lower, upper = _bounds(node, "minimum"), _bounds(node, "maximum")
    if max(lower.values(), default=0) > limit or min(upper.values(), default=0) < -limit:
        raise GrammarError(f"a JSON schema must not demand numbers beyond {limit:.0e}")
    for key, bound in (*lower.items(), *upper.items()):
        node[key] = max(-limit, min(limit, bound))
    if is_any:
        _shorten(node, "minimum")
        _shorten(node, "maximum")
    if not _OTHERS.isdisjoint(node):
        return
    is_bounded = "multipleOf" in node or not is_any
    if not upper and (is_bounded or node.get("minimum", 0) >= limit):
        node["maximum"] = limit
    if not lower and (is_bounded or node.get("maximum", 0) <= -limit):
        node["minimum"] = -limit


def _bounds(node: Schema, name: str) -> dict[str, float]:
    """`minimum` and `exclusiveMinimum`, or the other two, as far as the schema has them."""
    keys = (name, _exclusive(name))
    return {key: node[key] for key in keys if is_number(node.get(key))}


def _exclusive(name: str) -> str:
    return f"exclusive{name.capitalize()}"


def _shorten(node: Schema, name: str) -> None:
    """Replace a bound and the exclusive one by one short inclusive bound."""
    exclusive = node.pop(_exclusive(name), None)
    inclusive = node.get(name)
    bounds = []
    if inclusive is not None:
        bounds.append(_short(inclusive, name, is_exclusive=exclusive is True))
    if exclusive is not None and not isinstance(exclusive, bool):  # draft 4 has booleans
        bounds.append(_short(exclusive, name, is_exclusive=True))
    if bounds:
        node[name] = max(bounds) if name == "minimum" else min(bounds)


def _short(bound: float, name: str, *, is_exclusive: bool) -> float:
    """Return an inclusive bound of few digits: `bound` itself, or the next within it."""
    is_lower = name == "minimum"
    exact = Decimal(repr(bound))
    exponent = exact.adjusted() + 1 - _BOUND_DIGITS if exact else -_BOUND_DECIMALS
    step = Decimal(1).scaleb(max(exponent, -_BOUND_DECIMALS))
    short = exact.quantize(step, ROUND_CEILING if is_lower else ROUND_FLOOR)
    if is_exclusive and short == exact:
        short += step if is_lower else -step
    return float(short)


def share_numbers(schema: Schema) -> Schema:
    """Return the schema with one definition for all equal numbers with bounds.

    The grammar of such a number takes milliseconds to compile.
    """
    names: dict[str, str] = {}

    def shared(node: Schema, _: Path) -> Schema:
        if NUMBER_KEYS.isdisjoint(node) or not node.keys() <= NUMBER_KEYS | {"type"}:
            return change_children(node, shared)
        text = json.dumps(node, sort_keys=True)
        return {"$ref": f"#/$defs/{names.setdefault(text, f'number:{len(names)}')}"}

    schema = change_children(schema, shared)
    definitions = {name: json.loads(text) for text, name in names.items()}
    return {**schema, "$defs": {**schema.get("$defs", {}), **definitions}} if names else schema


def may_have_numbers(schema: object) -> bool:
    """Return whether values of the schema may have numbers without an end.

    False if it also fixes a number that is longer than they may be: its digits are all written.
    """
    if not isinstance(schema, dict):
        return schema is True
    found = list(nodes(schema))
    fixed = [node[key] for node in found for key in ("const", "enum") if key in node]
    return any(map(_may_have_numbers, found)) and not _has_long_number(fixed)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value of a schema is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_long_number(value: object) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_long_number, values(value)))
    if not is_number(value):
        return False
    return re.fullmatch(NUMBER, format(Decimal(repr(value)), "f")) is None


def _may_have_numbers(node: Schema) -> bool:
    kinds = node.get("type")
    if kinds is None:
        return _OTHERS.isdisjoint(node)
    if not isinstance(kinds, list):
        kinds = [kinds]
    has_any_items = "array" in kinds and node.get("items", True) is True
    others = node.get("additionalProperties", "properties" not in node)
    return "number" in kinds or has_any_items or ("object" in kinds and others is True)
