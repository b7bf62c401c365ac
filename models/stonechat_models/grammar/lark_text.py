"""Looks into the text of a Lark grammar: its JSON schemas, and how large its expressions are."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from stonechat_models.errors import GrammarError

_TOKEN = re.compile(
    r"""
    //[^\n]* | \#[^\n]*
    | <[^<>\s]++>
    | (?P<string>"(?:[^"\\\n]++|\\.)*+(?P<string_end>")?)
    | (?P<regex>/(?:[^/\\]++|\\.)++(?P<regex_end>/)?)
    | (?P<json>%json\b)
    | (?P<operator>[&~]|%(?!if\b))
    | (?:^[ \t]*[!?]*)(?P<defined>[A-Za-z_][\w-]*)(?:::_|\.-?\d+)?\s*(?:\[[^\]\n]*\]\s*)?:(?!:)
    | (?P<name>[A-Za-z_][\w-]*)
    """,
    re.VERBOSE | re.MULTILINE,
)
"""Takes linear time: what has no end is matched too. A regex may have several lines."""
_SPACE = re.compile(r"\s*")
_HUGE = 2**31
"""Sizes beyond this one are not told apart."""


@dataclass(frozen=True, slots=True)
class LarkPart:
    """Grammar text, then the schema of the `%json` that ends it. The last part has no schema."""

    text: str
    schema: object = None
    has_schema: bool = False


def split_schemas(source: str) -> Iterator[LarkPart]:
    """Split a grammar at its inline schemas. Raises `GrammarError` for one that is not JSON."""
    position = 0
    decoder = json.JSONDecoder()
    for match in _TOKEN.finditer(source):
        if match["json"] is None or match.start() < position:
            continue
        space = _SPACE.match(source, match.end())
        assert space is not None
        try:
            schema, end = decoder.raw_decode(source, space.end())
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"%json must be followed by a JSON schema: {error}") from error
        yield LarkPart(source[position : match.end()], schema, has_schema=True)
        position = end
    yield LarkPart(source[position:])


@dataclass(slots=True)
class LarkSizes:
    """Sizes in characters, as far as the text shows them without a full parse."""

    num_definitions: int = 0
    num_operators: int = 0
    """Those that intersect or negate, and statements such as `%regex`."""
    regexes: list[str] = field(default_factory=list)
    longest_literal: int = 0
    """The longest string or regex."""
    longest_terminal: int = 0
    """The longest terminal, with the terminals in it written out."""


@dataclass(slots=True)
class _Definition:
    size: int = 0
    parts: list[str] = field(default_factory=list)


def measure(text: str) -> LarkSizes:
    """Measure a grammar without its JSON schemas.

    Raises `GrammarError` if a string or regex has no end.
    """
    sizes = LarkSizes()
    definitions: dict[str, _Definition] = {}
    current = _Definition()
    for match in _TOKEN.finditer(text):
        literal = match["string"] or match["regex"]
        if literal is not None:
            if match["string_end"] is None and match["regex_end"] is None:
                raise GrammarError(f"a string or regular expression has no end: {literal[:20]}")
            current.size += len(literal)
            sizes.longest_literal = max(sizes.longest_literal, len(literal))
            if match["regex"] is not None:
                sizes.regexes.append(literal)
        elif match["operator"] is not None:
            sizes.num_operators += 1
        elif match["defined"] is not None:
            sizes.num_definitions += 1
            current = definitions.setdefault(match["defined"], _Definition())
        elif match["name"] is not None:
            current.parts.append(match["name"])
    terminals = {name: d for name, d in definitions.items() if name.lstrip("_")[:1].isupper()}
    sizes.longest_terminal = max(_expanded(terminals).values(), default=0)
    return sizes


def _expanded(terminals: dict[str, _Definition]) -> dict[str, int]:
    """The size of each terminal with all others written out. A cycle counts once."""
    sizes: dict[str, int] = {}
    stack = [(name, False) for name in terminals]
    while stack:
        name, has_parts = stack.pop()
        if name in sizes and not has_parts:
            continue
        terminal = terminals[name]
        parts = [part for part in terminal.parts if part in terminals]
        if has_parts:
            sizes[name] = min(_HUGE, terminal.size + sum(sizes[part] for part in parts))
        else:
            sizes[name] = 0  # until its parts are known
            stack.append((name, True))
            stack += [(part, False) for part in parts if part not in sizes]
    return sizes
