"""Writes Lark grammars for llguidance: each inline schema becomes a grammar of its own.

Equal schemas share one, as each takes time to compile. A second bundle of grammars bounds the
digits of numbers (see `numbers`).
"""

import json
from collections.abc import Callable, Mapping

from stonechat_models.grammar.lark_text import measure, split_schemas
from stonechat_models.grammar.schemas.json_schema import COMPILE_OPTIONS, prepare_value
from stonechat_models.grammar.schemas.limits import check_expression
from stonechat_models.grammar.schemas.numbers import NUMBER, bounded_json, may_have_numbers

_ANY_NUMBER = {"type": "number", "x-guidance": COMPILE_OPTIONS}


def bundle(sources: Mapping[str, str]) -> str:
    """Return the grammars of these names for llguidance; the first is that of the whole text.

    Raises `GrammarError` for a schema that is refused, and for an expression that is too long.
    """
    for source in sources.values():
        sizes = measure(" ".join(part.text for part in split_schemas(source)))
        check_expression(sizes.longest_literal, "a string or regular expression of a grammar")
        check_expression(sizes.longest_terminal, "a terminal with all terminals in it")
    return _write(sources, _exact)


def number_bundle(sources: Mapping[str, str]) -> str | None:
    """Return the same grammars with any bounded JSON in place of schemas with endless numbers.

    None: there are no such schemas.
    """
    parts = [part for source in sources.values() for part in split_schemas(source)]
    is_needed = any(part.has_schema and _is_endless(part.schema) for part in parts)
    return _write(sources, _bounded) if is_needed else None


def _write(sources: Mapping[str, str], write: Callable[[object], Mapping[str, object]]) -> str:
    texts: dict[str, str] = {}
    names: dict[str, str] = {}
    for name, source in sources.items():
        text = ""
        for part in split_schemas(source):
            text += part.text.removesuffix("%json") if part.has_schema else part.text
            if part.has_schema:
                grammar = json.dumps(write(part.schema))
                text += f" @{names.setdefault(grammar, f'schema_{len(names)}')} "
        texts[name] = text
    grammars = [{"name": name, "lark_grammar": text} for name, text in texts.items()]
    grammars += [{"name": name, **json.loads(grammar)} for grammar, name in names.items()]
    return json.dumps({"grammars": grammars})


def _exact(schema: object) -> Mapping[str, object]:
    prepared = prepare_value(schema)
    if prepared == _ANY_NUMBER:
        return {"lark_grammar": f"start: /{NUMBER}/"}
    return {"json_schema": prepared}


def _bounded(schema: object) -> Mapping[str, object]:
    if _is_endless(schema):
        return {"lark_grammar": bounded_json(COMPILE_OPTIONS)}
    return _exact(schema)


def _is_endless(schema: object) -> bool:
    """Whether numbers have no end in what `_exact` writes."""
    return may_have_numbers(schema) and prepare_value(schema) != _ANY_NUMBER
