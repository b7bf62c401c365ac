"""Looks into the text of a Lark grammar: its JSON schemas, and how large its expressions are."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from stonechat_models.errors import GrammarError

_TOKEN = re.compile(
    r"""
    //[^\n]* | \#[^\n]*
    | (?P<string>"(?:\\.|[^"\\\n])*")
    | (?P<regex>/(?:\\.|[^/\\\n])+/)
    | (?P<json>%json\b)
    | (?:^[ \t]*[!?]*)(?P<defined>[A-Za-z_][\w-]*)(?:\.-?\d+)?\s*(?:\[[^\]\n]*\]\s*)?:(?!:)
    | (?P<name>[A-Za-z_][\w-]*)
    """,
    re.VERBOSE | re.MULTILINE,
)


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
        start = match.end() + len(source[match.end() :]) - len(source[match.end() :].lstrip())
        try:
            schema, end = decoder.raw_decode(source, start)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"%json must be followed by a JSON schema: {error}") from error
        yield LarkPart(source[position : match.end()], schema, has_schema=True)
        position = end
    yield LarkPart(source[position:])


@dataclass(slots=True)
class LarkSizes:
    """Sizes in characters, as far as the text shows them without a full parse."""

    num_definitions: int = 0
    regex_chars: int = 0
    """All regexes together."""
    longest_literal: int = 0
    """The longest string or regex."""
    longest_terminal: int = 0
    """The longest terminal, with the terminals in it written out."""


@dataclass(slots=True)
class _Definition:
    size: int = 0
    parts: list[str] = field(default_factory=list)


def measure(text: str) -> LarkSizes:
    """Measure a grammar without its JSON schemas."""
    sizes = LarkSizes()
    definitions: dict[str, _Definition] = {}
    current = _Definition()
    for match in _TOKEN.finditer(text):
        literal = match["string"] or match["regex"]
        if literal is not None:
            current.size += len(literal)
            sizes.longest_literal = max(sizes.longest_literal, len(literal))
            sizes.regex_chars += len(match["regex"] or "")
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
    for first in terminals:
        stack = [first]
        while stack:
            name = stack[-1]
            if name not in sizes:
                sizes[name] = 0  # until its parts are known
                stack += [part for part in terminals[name].parts if part in terminals]
                continue
            stack.pop()
            parts = terminals[name].parts
            sizes[name] = terminals[name].size + sum(sizes.get(part, 0) for part in parts)
    return sizes
