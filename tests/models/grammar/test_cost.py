"""A grammar that is called cheap needs few resources, whatever is in it."""

import json

import pytest
from llguidance import LLMatcher, LLParserLimits

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_models.grammar.cost import (
    MAX_CHARS,
    _num_repeats,
    is_cheap,
)
from stonechat_models.grammar.lark_text import measure, split_schemas
from stonechat_models.grammar.schemas.limits import MAX_EXPRESSION_CHARS
from stonechat_models.grammar.source import to_llguidance
from stonechat_models.types import GrammarSpec
from tests.models.byte_vocabulary import ByteVocabulary
from tests.models.walks import PADDED_VOCAB

SMALL_FUEL = LLParserLimits(
    initial_lexer_fuel=100_000, max_grammar_size=50_000, verbose_errors=False
)
"""A tenth of what a costly grammar may use."""

STARS = "(ab|cd)*"


def schema(value: object) -> GrammarSpec:
    return GrammarSpec("json_schema", json.dumps(value))


def record(num_properties: int, **fields: object) -> dict[str, object]:
    properties = {f"field_{i}": {"type": "string", **fields} for i in range(num_properties)}
    return {"type": "object", "properties": properties}


CHEAP = {
    "any object": schema({"type": "object"}),
    "not JSON": GrammarSpec("json_schema", "{"),
    "a record": schema(record(20)),
    "many optional properties": schema(record(900)),
    "many dates": schema(record(350, format="date-time")),
    "many numbers": schema({"type": "array", "prefixItems": [{"multipleOf": 100}] * 700}),
    "many integers": schema({"type": "array", "prefixItems": [{"type": "integer"}] * 700}),
    "as many integers as numbers may differ": schema(
        {
            "type": "array",
            "prefixItems": [{"type": "integer", "multipleOf": 69 + i} for i in range(31)],
        }
    ),
    "a long enum": schema({"enum": [f"value {i}" for i in range(2_000)]}),
    "large counts": schema({"type": "array", "maxItems": 100_000, "items": record(100)}),
    "an optional value": schema({"anyOf": [{"type": "string"}, {"type": "null"}], "title": "x"}),
    "a default beside a reference": schema(
        {"allOf": [{"$ref": "#/$defs/a"}], "default": 1, "$defs": {"a": {"enum": [1, 2]}}}
    ),
    "references": schema(
        {
            "$defs": {
                f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(60)
            }
            | {"d60": {}},
            "properties": {"a": {"$ref": "#/$defs/d0"}},
        }
    ),
    "a regex": GrammarSpec("regex", "[A-Z]{3}-[0-9]{2}"),
    "a regex that branches": GrammarSpec("regex", "(.*a.{10}){100}"),
    "a regex of options": GrammarSpec("regex", "a?" * 250 + "b"),
    "choices": GrammarSpec("choice", json.dumps([f"value {i}" for i in range(2_000)])),
    "a Lark grammar": GrammarSpec("lark", f'start: "a" %json {json.dumps(record(50))} | /[a-z]+/'),
    "rules": GrammarSpec(
        "lark", "start: r0\n" + "".join(f'r{i}: "a" r{i + 1}\n' for i in range(150)) + 'r150: "b"'
    ),
    "a special token with a slash": GrammarSpec("lark", 'start: "a" </s>'),
    "marks in comments": GrammarSpec("lark", 'start: "a" // don\'t "x /y & z\n# "\n'),
    "braces in a string": GrammarSpec("lark", 'start: "{9999}{9999}"'),
    "several grammars": GrammarSpec(
        "lark_bundle", json.dumps({"m": 'start: "<" @n', "n": "start: /[0-9]/"})
    ),
}

COSTLY = {
    "a long schema": schema({"description": "x" * MAX_CHARS}),
    "a long regex": GrammarSpec("regex", STARS * 100),
    "nested repeats": GrammarSpec("regex", "(a{1,1000}){1,1000}"),
    "a long pattern": schema({"pattern": STARS * 100}),
    "patterns that are long together": schema(record(20, pattern=STARS * 5)),
    "nested repeats in a pattern": schema({"pattern": "(a{1,1000}){1,1000}"}),
    "a pattern and a length": schema({"pattern": "a*", "minLength": 3}),
    "an intersection": schema({"allOf": [{"pattern": "a*"}, {"pattern": "b*"}]}),
    "a reference with a length": schema(
        {"$ref": "#/$defs/a", "$defs": {"a": {"pattern": "a*"}}, "maxLength": 3}
    ),
    "options with a length": schema({"anyOf": [{"pattern": "a*"}], "maxLength": 3}),
    "a negation": schema({"not": {"pattern": "a*"}}),
    "a large multiple": schema({"type": "integer", "multipleOf": 999_983}),
    "a fraction": schema({"type": "number", "multipleOf": 0.00007}),
    "different numbers": schema(
        {"type": "array", "prefixItems": [{"type": "number", "minimum": i / 7} for i in range(99)]}
    ),
    "a huge count": schema({"type": "string", "minLength": 10**7}),
    "many linked schemas": schema({"$ref": "#", "items": [record(1) for _ in range(200)]}),
    "a long terminal": GrammarSpec("lark", f"start: A\nA: /{STARS * 100}/"),
    "doubling terminals": GrammarSpec(
        "lark",
        "start: T20\nT0: /ab/\n" + "".join(f"T{i}: T{i - 1} T{i - 1}\n" for i in range(1, 21)),
    ),
    "many rules": GrammarSpec("lark", "start: r0\n" + "".join(f'r{i}: "a"\n' for i in range(300))),
    "an intersection in Lark": GrammarSpec("lark", "start: A\nA: /(a{7})*/ & /(a{11})*/"),
    "a regex of several lines in Lark": GrammarSpec("lark", f"start: A\nA: /{STARS * 99}\n/"),
    "a negation after a special token": GrammarSpec("lark", "start: </s> A\nA: ~/a*/"),
    "a negation in Lark": GrammarSpec("lark", "start: A\nA: ~/a*/"),
    "another grammar in Lark": GrammarSpec("lark", 'start: A\nA: %regex {"substring_chars": "ab"}'),
    "a costly schema in Lark": GrammarSpec("lark", 'start: %json {"multipleOf": 999983}'),
    "a costly grammar of several": GrammarSpec(
        "lark_bundle", json.dumps({"m": "start: @n", "n": "start: A\nA: ~/a*/"})
    ),
}


@pytest.mark.parametrize("name", CHEAP)
def test_cheap_grammars_need_little_fuel(name: str) -> None:
    assert is_cheap(CHEAP[name])
    if name == "not JSON":
        return
    text = to_llguidance(CHEAP[name])
    assert LLMatcher.validate_grammar(text, limits=SMALL_FUEL).removeprefix("WARNING: ") in (
        "",
        "no tokenizer - can't validate <[...]>",
    )


@pytest.mark.parametrize("name", COSTLY)
def test_costly_grammars_need_a_trial(name: str) -> None:
    assert not is_cheap(COSTLY[name])


@pytest.mark.parametrize(
    "spec",
    [
        GrammarSpec("regex", "a" * 16_385),
        GrammarSpec("regex", STARS * 30_000),
        schema({"pattern": "a" * 16_385}),
        schema({"patternProperties": {"a" * 16_385: {}}}),
        schema({"properties": {"a": {"items": {"pattern": STARS * 25_000}}}}),
        GrammarSpec("lark", f'start: "{"a" * 16_400}"'),
        GrammarSpec("lark", f"start: A\nA: /{STARS * 25_000}/"),
        GrammarSpec("lark", f"start: A\nA: /{'a' * 8_000}/ B\nB: /{'b' * 8_400}/"),
        COSTLY["doubling terminals"],
        GrammarSpec("lark", f'start: %json {{"pattern": "{"a" * 16_385}"}}'),
        GrammarSpec("lark_bundle", json.dumps({"m": f'start: "{"a" * 16_400}"'})),
        GrammarSpec("choice", json.dumps(["a" * 16_385])),
    ],
)
def test_one_expression_has_a_largest_size(spec: GrammarSpec) -> None:
    with pytest.raises(GrammarError, match="may have at most 16,384 characters"):
        GrammarCompiler(ByteVocabulary(), PADDED_VOCAB).compile(spec)


def test_an_expression_of_the_largest_size_is_compiled() -> None:
    compiler = GrammarCompiler(ByteVocabulary(), PADDED_VOCAB)
    compiler.compile(GrammarSpec("regex", "a" * 16_384))
    compiler.compile(schema({"type": "string", "pattern": "a" * 16_384}))


def test_terminals_that_name_each_other_are_measured() -> None:
    spec = GrammarSpec("lark", "start: A\nA: B\nB: A")
    assert is_cheap(spec)
    with pytest.raises(GrammarError):
        GrammarCompiler(ByteVocabulary(), PADDED_VOCAB).compile(spec)


@pytest.mark.parametrize(
    "text",
    [
        'start: "' + '\\"' * 100_000,
        "start: /" + "\\/" * 100_000,
        "start: /{" + "1" * 400,
        'start: "a\nb: "c"',
    ],
)
def test_a_literal_without_an_end_is_refused_at_once(text: str) -> None:
    """It takes minutes if each quote in it is tried as the begin of another literal."""
    spec = GrammarSpec("lark", text)
    is_cheap(spec)
    with pytest.raises(GrammarError, match="has no end"):
        to_llguidance(spec)


def test_the_time_to_read_a_grammar_is_linear() -> None:
    """Each of these takes a minute or more if its time is quadratic."""
    names = "start: A\nA: " + "B " * 60_000 + "\nB: " + "C " * 60_000 + '\nC: "ab"'
    assert measure(names).longest_terminal > MAX_EXPRESSION_CHARS
    assert len(list(split_schemas("start: " + "%json 1\n" * 30_000))) == 30_001
    assert _num_repeats("{" + "1" * 200_000) == 1


def test_the_size_of_a_terminal_includes_those_that_it_names() -> None:
    text = 'start: A\nA: B B C\nB: C "b"\nC: /cc/\nD: E\nE: D "e"'
    assert measure(text).longest_terminal == 2 * (4 + 3) + 4
