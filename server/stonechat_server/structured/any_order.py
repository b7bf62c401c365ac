"""Writes rules for parts that may come in any order, each at most once.

llguidance's rules with a number (`name::_`) keep in its bits which parts have been written.
"""

from collections.abc import Collection, Mapping, Sequence

from stonechat_server.structured.lark import choice

_GROUP = 60
_ANY = 63
"""The bit that is set once any part has been written."""


def any_order(
    parts: Mapping[str, str],
    required: Sequence[Collection[str]],
    rules: dict[str, str],
    name: str,
    *,
    needs_any: bool = False,
    separator: str = "",
) -> str:
    """Return an expression for the rules of `parts`, by key, and add rules that begin with `name`.

    All keys of at least one of `required` are written; with `needs_any` at least one key,
    whichever it is. Of more than 60 parts, each 60 have any order, the required ones first.
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
