"""What a grammar may cost, as far as its text alone can tell.

A grammar that `is_cheap` compiles in moments. Only such a grammar may be compiled without a trial
in a process of its own (see `checker`). Those bounds are narrow: a grammar that exceeds them may
still be cheap.
"""

import json
import re
from functools import lru_cache

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.lark_text import measure, split_schemas
from stonechat_models.grammar.schemas.schema_tree import COUNT_KEYS, NUMBER_KEYS
from stonechat_models.types import GrammarSpec

MAX_CHARS = 32 * 1024
MAX_REGEX_CHARS = 512
"""All regexes and terminals of a grammar together."""
MAX_REPEATS = 10_000
"""The product of the counts in one regex."""
MAX_COUNT = 100_000
"""Of one keyword, such as `maxItems`."""
MAX_MULTIPLE = 100
MAX_DIFFERENT_NUMBERS = 32
"""Equal ones share a definition (see `numbers`)."""
MAX_LINKED_NODES = 200
"""Schemas and rules that refer to each other are compiled by recursion, which needs stack."""

_REPEAT = re.compile(r"\{(\d*+)(?:,(\d*+))?\}")
_COSTLY_KEYS = frozenset(
    (
        *("contains", "dependentSchemas", "if", "not", "oneOf", "patternProperties"),
        *("propertyNames", "unevaluatedItems", "unevaluatedProperties"),
    )
)
"""Keywords that intersect or exclude languages. The cost of an intersection is a product."""
_ALONE = ("$ref", "allOf", "anyOf")
_BESIDE = frozenset(
    ("$defs", "$schema", "default", "definitions", "description", "examples", "title")
)
"""What may stand beside a keyword of `_ALONE`: it intersects nothing."""
_WITHOUT_PATTERN = frozenset(("format", "maxLength", "minLength"))


@lru_cache(maxsize=64)  # one request asks several times
def is_cheap(spec: GrammarSpec) -> bool:
    """Return whether the grammar may be compiled without a trial in a process with limits.

    That is also so for a grammar that is refused at once.
    """
    if len(spec.source) > MAX_CHARS:
        return False
    try:
        match spec.kind:
            case "choice":
                return True
            case "regex":
                return _are_cheap_regexes([spec.source])
            case "json_schema":
                return _is_cheap_schema(json.loads(spec.source))
            case "lark":
                return _is_cheap_lark(spec.source)
            case "lark_bundle":
                return all(map(_is_cheap_lark, json.loads(spec.source).values()))
    except (ValueError, RecursionError, GrammarError):
        return True


def _are_cheap_regexes(patterns: list[str]) -> bool:
    if sum(map(len, patterns)) > MAX_REGEX_CHARS:
        return False
    return all(_num_repeats(pattern) <= MAX_REPEATS for pattern in patterns)


def _num_repeats(pattern: str) -> int:
    product = 1
    for match in _REPEAT.finditer(pattern):
        product *= max([int(number[:9]) for number in match.groups() if number] + [1])
    return product


def _is_cheap_schema(schema: object) -> bool:
    patterns: list[str] = []
    numbers: set[str] = set()
    num_nodes, has_references = 0, False
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        if not isinstance(value, dict):
            continue
        waiting += value.values()
        num_nodes += 1
        has_references |= "$ref" in value
        if not _is_cheap_node(value):
            return False
        if isinstance(value.get("pattern"), str):
            patterns.append(value["pattern"])
        numbers.add(str([value.get(key) for key in NUMBER_KEYS]))
    if has_references and num_nodes > MAX_LINKED_NODES:
        return False
    if len(numbers) > MAX_DIFFERENT_NUMBERS:
        return False
    return _are_cheap_regexes(patterns)


def _is_cheap_node(node: dict[str, object]) -> bool:
    """Whether this object is cheap, read as a schema. Its children are not considered."""
    if not _COSTLY_KEYS.isdisjoint(node):
        return False
    parts = node.get("allOf")
    if isinstance(parts, list) and len(parts) > 1:
        return False
    if any(key in node and node.keys() - {key} - _BESIDE for key in _ALONE):
        return False
    if "pattern" in node and not _WITHOUT_PATTERN.isdisjoint(node):
        return False
    multiple = node.get("multipleOf", 1)
    if not (isinstance(multiple, int) and multiple <= MAX_MULTIPLE):
        return False
    counts = [node.get(key) for key in COUNT_KEYS]
    return all(not isinstance(count, int | float) or count <= MAX_COUNT for count in counts)


def _is_cheap_lark(source: str) -> bool:
    parts = list(split_schemas(source))
    sizes = measure(" ".join(part.text for part in parts))
    return (
        not sizes.num_operators
        and sizes.num_definitions <= MAX_LINKED_NODES
        and sizes.longest_terminal <= MAX_REGEX_CHARS
        and _are_cheap_regexes(sizes.regexes)
        and all(_is_cheap_schema(part.schema) for part in parts if part.has_schema)
    )
