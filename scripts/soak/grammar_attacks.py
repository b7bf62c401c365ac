"""Request bodies whose grammars would take very long, or much memory, to compile.

Each has a number that makes its text new, so that no cache knows it.
"""

import random
from collections.abc import Callable
from typing import Any

from neighbours import chat

STARS = "(ab|cd)*"
PERIODS = " & ".join(f"/(a{{{n}}})*/" for n in (7, 11, 13, 17, 19, 23))


def new_number() -> int:
    return random.randrange(700_000, 1_000_000)


def structured(**outputs: Any) -> bytes:
    return chat(structured_outputs=outputs, max_tokens=8)


def tools() -> bytes:
    """128 tools, each with a number that takes long to compile."""
    functions = []
    for i in range(128):
        number = {"type": "integer", "multipleOf": new_number()}
        schema = {"type": "object", "properties": {"n": number}}
        function = {"name": f"f{i}", "strict": True, "parameters": schema}
        functions.append({"type": "function", "function": function})
    return chat(tools=functions, max_tokens=8)


def doubling_terminals() -> str:
    """A Lark grammar of some hundred characters that stands for a terminal of megabytes."""
    lines = [f"T{i}: T{i - 1} T{i - 1}" for i in range(1, 21)]
    return "\n".join(["start: T20", f'T0: "{new_number()}"', *lines])


def linked_schemas() -> dict[str, Any]:
    """1,000 schemas, each with the next one in it."""
    links = {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(1000)}
    last = {"d1000": {"const": new_number()}}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": links | last}


GRAMMARS: dict[str, tuple[Callable[[], bytes], int]] = {
    "large_regex": (lambda: structured(regex=STARS * 30_000 + str(new_number())), 1),
    "largest_regex": (lambda: structured(regex=STARS * 2_000 + str(new_number())), 20),
    "optional_letters": (lambda: structured(regex="a?" * 8_000 + str(new_number())), 20),
    "large_terminal": (
        lambda: structured(grammar=f"start: A\nA: /{STARS * 25_000}{new_number()}/"),
        1,
    ),
    "doubling_terminals": (lambda: structured(grammar=doubling_terminals()), 1),
    "intersection": (lambda: structured(grammar=f'start: A "{new_number()}"\nA: {PERIODS}'), 20),
    "large_pattern": (lambda: structured(json={"pattern": STARS * 25_000 + str(new_number())}), 1),
    "repeats": (lambda: structured(regex=f"(a{{1,1000}}){{1,1000}}{new_number()}"), 20),
    "multiples": (lambda: structured(json={"type": "integer", "multipleOf": new_number()}), 20),
    "linked_schemas": (lambda: structured(json=linked_schemas()), 1),
    "many_tools": (tools, 1),
}
"""The body of a request, and on how many connections it is sent at once."""
