"""Arguments that are not one JSON object may be written in any order, each once."""

from collections.abc import Sequence
from itertools import permutations

import pytest

from stonechat_models.sampling.state import TokenConstraint
from stonechat_models.types import GrammarSpec
from stonechat_server.structured.lark import any_order
from tests.models.walks import allowed_ids
from tests.server.structured.calls import COMPILER, VOCABULARY, arguments, enforced, is_allowed

MARK = "]<]minimax[>["
WRITTEN = {
    "qwen_coder": (
        "<tool_call>\n<function=f>\n{}</function>\n</tool_call>",
        "<parameter={0}>\n{0}\n</parameter>\n",
        "",
    ),
    "minimax_m3": (
        f'{MARK}<tool_call>\n{MARK}<invoke name="f">{{}}{MARK}</invoke>\n{MARK}</tool_call>',
        f"{MARK}<{{0}}>{{0}}{MARK}</{{0}}>",
        "",
    ),
    "pythonic": ("[f({})]", '{0}="{0}"', ", "),
    "gemma4": ("<|tool_call>call:f{{{}}}<tool_call|>", '{0}:<|"|>{0}<|"|>', ","),
}
"""A call, an argument whose value is its key, and what stands between two arguments."""
TEXTS = {key: {"type": "string"} for key in "abc"}


def write(layout: str, keys: Sequence[str]) -> str:
    call, argument, separator = WRITTEN[layout]
    return call.format(separator.join(argument.format(key) for key in keys))


@pytest.mark.parametrize("layout", WRITTEN)
def test_arguments_in_any_order(layout: str) -> None:
    tool, _ = enforced({"type": "object", "properties": TEXTS, "required": ["b"]})
    for number in range(4):
        for keys in permutations("abc", number):
            text = write(layout, keys)
            assert is_allowed(tool, layout, text) == ("b" in keys), keys
            assert arguments(tool, layout, text) == {key: key for key in keys}
    for keys in (["b", "b"], ["a", "b", "a"], ["b", "d"]):
        assert not is_allowed(tool, layout, write(layout, keys)), keys


def takes(parts: Sequence[str], *required: str, needs_any: bool = False) -> list[str]:
    """Which texts of up to three of the first parts, in any order, a grammar of `parts` allows."""
    names = {part: f"part_{i}" for i, part in enumerate(parts)}
    rules = {name: f'"{part}"' for part, name in names.items()}
    start = any_order(names, required or [""], rules, "all", needs_any=needs_any)
    lines = [
        f"start: {start} END",
        "END: /;/",
        *(f"{name}: {rule}" for name, rule in rules.items()),
    ]
    compiled = COMPILER.compile(GrammarSpec("lark", "\n".join(lines)))
    texts = ["".join(keys) for n in range(4) for keys in permutations(parts[:3], n)]
    return [text for text in texts if is_allowed_by(compiled.new_constraint(), f"{text};")]


def is_allowed_by(constraint: TokenConstraint, text: str) -> bool:
    for token_id in VOCABULARY.encode(text):
        if token_id not in allowed_ids(constraint):
            return False
        constraint.accept(token_id)
    return True


def test_one_of_several_sets_is_required() -> None:
    assert takes("a") == ["", "a"]
    assert takes("abc", "ab", "c") == [
        *("c", "ab", "ac", "ba", "bc", "ca", "cb"),
        *("abc", "acb", "bac", "bca", "cab", "cba"),
    ]
    assert takes("ab", needs_any=True) == ["a", "b", "ab", "ba"]


def test_many_parts_are_in_order_by_groups() -> None:
    many = [chr(ord("A") + i) for i in range(26)] + [chr(0x4E00 + i) for i in range(100)]
    assert takes(many, "B") == [
        *("B", "AB", "BA", "BC", "CB"),
        *map("".join, permutations("ABC")),
    ]
    assert takes([*many[26:], *"ABC"], needs_any=True)[:3] == many[26:29]
    assert takes(many, "".join(many[:61]), "A") == [
        *("A", "AB", "AC", "BA", "CA"),
        *map("".join, permutations("ABC")),
    ]
