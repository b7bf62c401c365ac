"""Every token sequence that a grammar allows ends in a text that the grammar describes."""

import json
import random
import re
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import jsonschema
import numpy as np
import pytest

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_models.sampling.state import TokenConstraint
from stonechat_models.types import GrammarSpec
from tests.models.byte_vocabulary import ByteVocabulary
from tests.models.example_schemas import SCHEMAS
from tests.models.walks import PADDED_VOCAB, allowed_ids, walk


@pytest.fixture(scope="module")
def vocabulary() -> ByteVocabulary:
    return ByteVocabulary()


@pytest.fixture(scope="module")
def compiler(vocabulary: ByteVocabulary) -> GrammarCompiler:
    return GrammarCompiler(vocabulary, PADDED_VOCAB)


def accepts(constraint: TokenConstraint, vocabulary: ByteVocabulary, text: str) -> bool:
    for token_id in vocabulary.encode(text):
        if constraint.is_finished or token_id not in allowed_ids(constraint):
            return False
        constraint.accept(token_id)
    return constraint.is_finished or not vocabulary.eos_token_ids.isdisjoint(
        allowed_ids(constraint)
    )


def refusal(compiler: GrammarCompiler, spec: GrammarSpec) -> str:
    with pytest.raises(GrammarError) as error_info:
        compiler.compile(spec)
    return str(error_info.value)


def schema_spec(schema: object) -> GrammarSpec:
    return GrammarSpec("json_schema", json.dumps(schema))


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_walks_under_a_schema_validate(
    name: str, compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    schema = SCHEMAS[name]
    compiled = compiler.compile(schema_spec(schema))
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    rng = random.Random(name)
    num_finished = 0
    for _ in range(40):
        text = walk(compiled.new_constraint(), vocabulary, rng)
        if text is not None:
            num_finished += 1
            validator.validate(json.loads(text.decode("utf-8")))
    assert num_finished > 0


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (GrammarSpec("regex", "^[a-c]{2}$"), ["ab", "cc"], ["", "a", "abc", "dd"]),
        (GrammarSpec("regex", r"cost: \$"), ["cost: $"], ["cost: "]),
        (GrammarSpec("choice", '["yes", "no \\"x\\""]'), ["yes", 'no "x"'], ["no", "y"]),
        (GrammarSpec("lark", 'start: "a"+ | "b"'), ["a", "aaa", "b"], ["", "ab"]),
        (
            GrammarSpec(
                "lark", 'start: "n=" %json {"type": "integer", "x-guidance": {}} "%json {"'
            ),
            ["n=12%json {"],
            ["n=12", "n=x%json {"],
        ),
        (
            GrammarSpec("lark", 'start: "<" %json {"type": "number", "title": "x"} "%json>"'),
            ["<1%json>", "<-0.5e-300%json>", "<0." + "1" * 24 + "%json>"],
            ["<01%json>", "<.5%json>", "<1." + "0" * 25 + "%json>", "<" + "1" * 22 + "%json>"],
        ),
        (
            GrammarSpec(
                "lark_bundle", json.dumps({"m": 'start: "<" @n ">"', "n": "start: /[0-9]/"})
            ),
            ["<7>"],
            ["<a>", "7"],
        ),
    ],
)
def test_other_kinds_of_grammar(
    spec: GrammarSpec,
    good: list[str],
    bad: list[str],
    compiler: GrammarCompiler,
    vocabulary: ByteVocabulary,
) -> None:
    compiled = compiler.compile(spec)
    assert [t for t in good if not accepts(compiled.new_constraint(), vocabulary, t)] == []
    assert [t for t in bad if accepts(compiled.new_constraint(), vocabulary, t)] == []


def test_special_tokens_and_padding_are_never_part_of_a_text(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    for spec in (schema_spec({"type": "string"}), GrammarSpec("regex", r"(?s:.)*x")):
        constraint = compiler.compile(spec).new_constraint()
        for token_id in vocabulary.encode('"abc'):
            constraint.accept(token_id)
        allowed = set(allowed_ids(constraint))
        assert len(allowed) > 90
        assert not allowed & set(vocabulary.special_ids)
        assert max(allowed) < vocabulary.vocab_size


def test_whitespace_between_json_tokens_is_bounded(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    compiled = compiler.compile(schema_spec({"type": "array", "items": {"type": "integer"}}))
    for text in ("[1, 2]", "[\n  1,\n  2\n]", "[1,2]"):
        assert accepts(compiled.new_constraint(), vocabulary, text)
    for text in ("[  1]", "[\n\n1]", "[" + "\n" + " " * 17 + "1]", " [1]", "[1] ", "[1 \n]"):
        assert not accepts(compiled.new_constraint(), vocabulary, text)


def test_declared_keys_cannot_be_written_with_escapes_or_repeated(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    compiled = compiler.compile(schema_spec(SCHEMAS["declared and other keys"]))
    assert accepts(compiled.new_constraint(), vocabulary, '{"a": "x", "b": 1}')
    for text in ('{"\\u0061": 1}', '{"b": 1, "a": 2}', '{"a": "x", "a": 1}'):
        assert not accepts(compiled.new_constraint(), vocabulary, text)


LARGEST = 2**63 - 1024


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {"type": ["integer", "null"]},
            (-LARGEST, LARGEST, 1234567890123456789, 0, None),
            (LARGEST + 1,),
        ),
        ({"type": "integer", "minimum": 0}, (0, LARGEST), (-1, LARGEST + 1)),
        ({"type": "integer", "exclusiveMaximum": 5}, (4, -LARGEST), (5, -LARGEST - 1)),
        ({"type": "integer", "multipleOf": 7}, (14, -7), (1, 14 * 10**18)),
        ({"type": "integer", "minimum": 10**16}, (2 * 10**16,), (1,)),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, (LARGEST,), ()),
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, (0, LARGEST), (-1,)),
        ({"type": "number", "minimum": 10**18}, (10**18,), (10**18 - 1, 10**18 + 1)),
        ({"type": "number", "maximum": -(10**18)}, (-(10**18),), (-(10**18) + 1, 0)),
        ({"type": "number", "maximum": 1.7976931348623157e308}, (-2, 1.5, 10**18), ()),
        ({"type": "number", "minimum": -3.4e38, "exclusiveMinimum": 2}, (2.5,), (2, -1)),
        ({"type": "number", "minimum": 0, "maximum": 10**400}, (0, 1e17), (-1,)),
    ],
    ids=str,
)
def test_numbers_end_and_huge_bounds_are_taken(
    compiler: GrammarCompiler,
    vocabulary: ByteVocabulary,
    schema: dict[str, Any],
    good: tuple[object, ...],
    bad: tuple[object, ...],
) -> None:
    compiled = compiler.compile(schema_spec(schema))
    for values, expected in ((good, True), (bad, False)):
        for value in values:
            text = str(int(value)) if value == 1e17 else json.dumps(value)
            assert accepts(compiled.new_constraint(), vocabulary, text) is expected, text


@pytest.mark.parametrize(
    "values",
    [["a", "b"], [1, True, "1", None], [[1], [True], {"x": 1.5}, {"x": [0]}], ["\u00e9", "\u2028"]],
    ids=str,
)
def test_one_of_listed_values_may_be_written(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary, values: list[object]
) -> None:
    """As schemas list values that have a title each."""
    options = [{"const": value, "title": str(i)} for i, value in enumerate(values[:-1])]
    schema = {"oneOf": [*options, {"enum": [values[-1]], "title": "last"}]}
    compiled = compiler.compile(schema_spec(schema))
    for value in values:
        jsonschema.Draft202012Validator(schema).validate(value)
        text = json.dumps(value, ensure_ascii=False)
        assert accepts(compiled.new_constraint(), vocabulary, text)
    assert not accepts(compiled.new_constraint(), vocabulary, '"c"')


FLOATS = (0.1 + 0.2, 5e-324, 1.7976931348623157e308, 6.02214076e23, -1e-07, 0.00012345678901234567)


@pytest.mark.parametrize("schema", [{"type": "number"}, {"type": ["number", "null"]}, {}], ids=str)
def test_numbers_take_every_float_and_end(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary, schema: dict[str, Any]
) -> None:
    compiled = compiler.compile(schema_spec(schema))
    texts = [*map(json.dumps, FLOATS), "123456789012345680000", "0.0000012345678901234567"]
    assert [t for t in texts if not accepts(compiled.new_constraint(), vocabulary, t)] == []
    for start in ("1", "-0.", "1e", "2.5E+"):
        constraint = compiled.new_constraint()
        for token_id in vocabulary.encode(start):
            constraint.accept(token_id)
        zero = vocabulary.encode("0")[0]
        assert zero in allowed_ids(constraint)
        num_zeros = 0
        while not constraint.is_finished and zero in allowed_ids(constraint):
            constraint.accept(zero)
            num_zeros += 1
            assert num_zeros < 30
        assert constraint.is_finished or not vocabulary.eos_token_ids.isdisjoint(
            allowed_ids(constraint)
        )


def test_bounded_numbers_end_and_change_nothing_else(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    ratio = {"type": "number", "minimum": 0, "maximum": 1}
    record = {"type": "object", "properties": {"ratio": ratio, "other": {}}, "required": ["ratio"]}
    compiled = compiler.compile(schema_spec(record))
    value: list[object] = ["1.0000000000000000000000000000000", {"a\n": None, "b": [True, {}]}]
    for indent in (None, 2):
        text = json.dumps({"ratio": 0.12345678901234568, "other": value}, indent=indent)
        assert accepts(compiled.new_constraint(), vocabulary, text)
    for text in ('{"ratio":0.' + "1" * 25 + "}", '{"ratio":1,"other":[1.' + "0" * 25 + "]}"):
        assert not accepts(compiled.new_constraint(), vocabulary, text)


BOUNDS: dict[str, dict[str, Any]] = {
    "positive": {"exclusiveMinimum": 0},
    "negative": {"exclusiveMaximum": 0},
    "as in draft 4": {"minimum": 3, "exclusiveMinimum": True},
    "both": {"minimum": 0.5, "exclusiveMinimum": 0.25, "exclusiveMaximum": 0.75},
    "tiny": {"minimum": 1e-21, "maximum": 1e-20},
    "17 digits": {"exclusiveMinimum": 0.1 + 0.2, "maximum": 0.7000000000000001},
    "multiple": {"multipleOf": 7},
    "cents": {"multipleOf": 0.01, "minimum": 5},
}


@pytest.mark.parametrize("kind", [{"type": "number"}, {"type": ["number", "null"]}, {}], ids=str)
@pytest.mark.parametrize("name", BOUNDS)
def test_numbers_with_bounds_end_at_any_digit_and_validate(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary, name: str, kind: dict[str, Any]
) -> None:
    schema = {**kind, **BOUNDS[name]}
    draft = jsonschema.Draft4Validator if name == "as in draft 4" else jsonschema.Draft7Validator
    characters = vocabulary.encode("01.23456789-")
    compiled = compiler.compile(schema_spec(schema))
    for seed in range(20):
        rng = random.Random(seed)
        constraint, written = compiled.new_constraint(), []
        while not constraint.is_finished:
            allowed = allowed_ids(constraint)
            options = [t for t in characters if t in allowed]
            if not options:
                assert not vocabulary.eos_token_ids.isdisjoint(allowed)
                break
            written.append(options[0] if rng.random() < 0.7 else rng.choice(options))
            constraint.accept(written[-1])
            assert len(written) < 48
        value = json.loads(vocabulary.decode(written), parse_float=Fraction, parse_int=Fraction)
        exact = {key: Fraction(str(v)) for key, v in BOUNDS[name].items() if v is not True}
        assert draft({**schema, **exact}).is_valid(value), value


@pytest.mark.parametrize("number", [1e30, 1.5e-30])
def test_a_long_number_that_a_schema_fixes_is_written(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary, number: float
) -> None:
    properties = {"a": {"enum": [{"x": [number]}]}, "b": {"type": "number"}}
    schema = {"type": "object", "properties": properties, "required": ["a", "b"]}
    for spec in (schema_spec(schema), GrammarSpec("lark", f"start: %json {json.dumps(schema)}")):
        compiled = compiler.compile(spec)
        texts = [walk(compiled.new_constraint(), vocabulary, random.Random(i)) for i in range(9)]
        values = [json.loads(text)["a"]["x"][0] for text in texts if text is not None]
        assert values
        assert all(value == pytest.approx(number) for value in values)


def test_numbers_end_within_a_lark_grammar(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    record = {
        "type": "object",
        "properties": {"a": {"type": "number", "exclusiveMinimum": 0}, "b": {}, "c": {"const": 1}},
        "required": ["a"],
    }
    count = json.dumps({"type": "integer"})
    grammar = f'start: "<" %json {json.dumps(record)} "|" %json {count} ("," %json {count})* ">"'
    compiled = compiler.compile(GrammarSpec("lark", grammar))
    good = (
        '<{"a":0.12345678901234568}|1234567890123456789>',
        '<{"a":5, "b":[1e-300, {"x":"1' + "0" * 40 + '"}], "c":1}|1,2,3>',
    )
    bad = (
        '<{"a":1.' + "0" * 25 + "}|1>",
        '<{"a":1,"b":' + "1" * 22 + "}|1>",
        '<{"a":1,"c":2}|1>',
        '<{"a":1}|1.5>',
    )
    assert [t for t in good if not accepts(compiled.new_constraint(), vocabulary, t)] == []
    assert [t for t in bad if accepts(compiled.new_constraint(), vocabulary, t)] == []


def test_many_numbers_with_bounds_are_no_large_grammar(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    names = [f"p{i}" for i in range(600)]
    record = {"properties": {name: {"type": "integer"} for name in names}, "required": names}
    text = json.dumps(dict.fromkeys(names, 1234567890123456789), separators=(",", ":"))
    compiled = compiler.compile(schema_spec({"type": "object", **record}))
    assert accepts(compiled.new_constraint(), vocabulary, text)
    calls = " ".join(f'"{name}" %json {{"type": "integer"}}' for name in names)
    compiler.compile(GrammarSpec("lark", f"start: {calls}"))


@pytest.mark.parametrize("more", [{}, {"pattern": "^.*$"}, {"maxLength": 300}], ids=str)
def test_host_names_have_no_labels_that_a_pattern_cannot_check(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary, more: dict[str, Any]
) -> None:
    """As in the official suite, but for valid names with `xn--`, which are not written."""
    compiled = compiler.compile(schema_spec({"type": "string", "format": "hostname", **more}))
    longest = ".".join(["a" * 63] * 3 + ["b" * 61])
    good = ("a", "1host", "a--b.com", "abc--d.e", "a-b", "a" * 63 + ".com", longest)
    bad = ("", ".", "a.", ".a", "-a", "a-", "a--", "ab--", "a_b", "a" * 64, longest + "b")
    bad += ("xn--X", "xn--ll-0ea", "a.xn--wva3je", "XN--aa---o47jg78q")
    assert [t for t in good if not accepts(compiled.new_constraint(), vocabulary, f'"{t}"')] == []
    assert [t for t in bad if accepts(compiled.new_constraint(), vocabulary, f'"{t}"')] == []


def test_an_object_accepts_only_declared_properties_unless_the_schema_says_otherwise(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    record = {"type": "object", "properties": {"a": {"type": "integer"}}}
    open_record = {**record, "additionalProperties": True}
    text = '{"a": 1, "b": 2}'
    closed = compiler.compile(schema_spec(record)).new_constraint()
    assert not accepts(closed, vocabulary, text)
    assert accepts(compiler.compile(schema_spec(open_record)).new_constraint(), vocabulary, text)


NEEDS_ITSELF = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
ENDLESS = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/endless"}},
    "required": ["a"],
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"anyOf": [{"$ref": "#/$defs/endless"}, {"type": "null"}]}, "null", '{"a":'),
        ({"type": "array", "items": {"$ref": "#/$defs/endless"}}, "[]", "[{"),
        ({"properties": {"b": {"$ref": "#/$defs/endless"}}, "type": "object"}, "{}", '{"b'),
        ({**NEEDS_ITSELF, "type": ["object", "null"]}, '{"a":{"a":null}}', '{"a":{}'),
    ],
    ids=str,
)
def test_parts_whose_recursion_never_ends_are_never_begun(
    compiler: GrammarCompiler,
    vocabulary: ByteVocabulary,
    schema: dict[str, Any],
    good: str,
    bad: str,
) -> None:
    compiled = compiler.compile(schema_spec({**schema, "$defs": {"endless": ENDLESS}}))
    assert accepts(compiled.new_constraint(), vocabulary, good)
    constraint = compiled.new_constraint()
    allowed = []
    for token_id in vocabulary.encode(bad):
        allowed.append(constraint.allows(token_id))
        constraint.accept(token_id)
    assert not all(allowed)


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"if": {"type": "string"}, "then": {"maxLength": 1}}, "if"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "format": "idn-email"}, "idn-email"),
        ({"$ref": "https://example.com/x"}, "example.com"),
        ({"$ref": "#"}, "never ends"),
        ({**NEEDS_ITSELF, "$defs": {}}, "never ends"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "never ends"),
        ({"type": "object", "additionalProperties": {"$ref": "#"}, "minProperties": 1}, "never"),
        ({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#"}]}}}, "never"),
        (False, "not"),
        ({"type": "object", "minProperties": 3}, "minProperties"),
        ({"const": "a\u0000b"}, "control"),
        ({"properties": {"a": {"enum": [["\x7f"]]}}}, "control"),
        ({"type": "integer", "minimum": "3"}, "minimum"),
        ({"maximum": [1]}, "maximum"),
        ({"type": "string", "multipleOf": True}, "multipleOf"),
        ({"type": "number", "exclusiveMinimum": "1"}, "exclusiveMinimum"),
        ({"oneOf": [{"const": 1}, {"enum": [1.0, 2]}]}, "oneOf"),
        ({"properties": {"\ud800": {}}}, "surrogate"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "oneOf"),
        ({"$ref": "#a", "$id": "x", "$defs": {"a": {"$anchor": "a"}}}, "$id"),
        ({"type": "strin"}, "strin"),
        ([], "object"),
    ],
)
def test_what_cannot_be_enforced_is_named(
    schema: object, word: str, compiler: GrammarCompiler
) -> None:
    assert word in refusal(compiler, schema_spec(schema))


def test_keywords_without_effect_are_accepted(compiler: GrammarCompiler) -> None:
    schema = {"type": "array", "items": {"type": "null"}, "uniqueItems": False, "then": {}}
    compiler.compile(schema_spec({**schema, "x-guidance": {"lenient": True}}))
    assert "not" in refusal(compiler, schema_spec({"not": {}, "x-guidance": {"lenient": True}}))


@pytest.mark.parametrize(
    "spec",
    [
        GrammarSpec("json_schema", '{"type":'),
        GrammarSpec("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000),
        GrammarSpec("json_schema", json.dumps({"enum": ["x" * 300_000]})),
        GrammarSpec("json_schema", json.dumps({"enum": [*range(30_000)]})),
        GrammarSpec("regex", "(" * 20_000 + ")" * 20_000),
        GrammarSpec("regex", "(a"),
        GrammarSpec("regex", "\ud800"),
        GrammarSpec("lark", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
        GrammarSpec("lark", "start: nothing"),
        GrammarSpec("lark", "start: %json {"),
        GrammarSpec("lark", "start: %json " + "[" * 20_000),
        GrammarSpec("choice", "[]"),
        GrammarSpec("choice", '[""]'),
        GrammarSpec("choice", "[1]"),
    ],
)
def test_broken_or_oversized_sources_are_refused(
    spec: GrammarSpec, compiler: GrammarCompiler
) -> None:
    assert refusal(compiler, spec)
    assert refusal(compiler, spec) == refusal(compiler, spec)


HOSTILE = {
    "repeated repeats": {"type": "string", "pattern": "^((a|b|c|ab|bc){1,500}x){1,500}$"},
    "exponential automaton": {"type": "string", "pattern": "(a|b)*a(a|b){40}$"},
    "doubling references": {
        "$defs": {
            **{f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)},
            "d30": {"type": "object"},
        },
        "$ref": "#/$defs/d0",
    },
    "product of choices": {
        "allOf": [
            {"anyOf": [{"required": [f"p{i}"]}, {"required": [f"q{i}"]}], "type": "object"}
            for i in range(18)
        ]
    },
    "long array": {"type": "array", "items": {"type": "string"}, "minItems": 1_000_000},
    "long string": {"type": "string", "minLength": 1_000_000},
    "many properties": {
        "type": "object",
        "properties": {
            f"p{i}": {"type": "string", "pattern": f"[a-z]{{{i % 50}}}"} for i in range(3000)
        },
    },
    "many patterns": {
        "type": "object",
        "patternProperties": {f"^x{i}.*[a-z]{{{i}}}y$": {"type": "string"} for i in range(200)},
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused_or_stays_cheap(
    name: str, compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    def attempt() -> None:
        try:
            constraint = compiler.compile(schema_spec(HOSTILE[name])).new_constraint()
            walk(constraint, vocabulary, random.Random(1), limit=60)
        except GrammarError:
            pass

    worker = threading.Thread(target=attempt, daemon=True)
    worker.start()
    worker.join(timeout=60.0)
    assert not worker.is_alive()


def test_a_forbidden_token_is_an_error_at_the_next_mask(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    constraint = compiler.compile(GrammarSpec("regex", "abc")).new_constraint()
    constraint.accept(vocabulary.id_of(b"x"))
    assert not constraint.is_finished
    with pytest.raises(GrammarError):
        allowed_ids(constraint)


def test_matchers_of_one_grammar_are_independent(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    compiled = compiler.compile(GrammarSpec("regex", "ab|cd"))
    first, second = compiled.new_constraint(), compiled.new_constraint()
    first.accept(vocabulary.id_of(b"a"))
    assert allowed_ids(first) == [ord("b")]
    assert allowed_ids(second) == [ord("a"), ord("c")]


def test_a_grammar_that_can_only_end_is_finished(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    constraint = compiler.compile(schema_spec({"type": "boolean"})).new_constraint()
    for token_id in vocabulary.encode("true"):
        assert not constraint.is_finished
        constraint.accept(token_id)
    assert constraint.is_finished
    constraint.accept(next(iter(vocabulary.eos_token_ids)))
    assert constraint.is_finished


def test_compiling_in_many_threads_at_once(vocabulary: ByteVocabulary) -> None:
    compiler = GrammarCompiler(vocabulary, PADDED_VOCAB)
    texts: list[bytes | None] = []

    def use(seed: int) -> None:
        compiled = compiler.compile(GrammarSpec("regex", f"[a-c]{{{seed % 3 + 1}}}"))
        texts.append(walk(compiled.new_constraint(), vocabulary, random.Random(seed)))

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 12
    assert all(text and re.fullmatch(rb"[a-c]{1,3}", text) for text in texts)


def _json_texts() -> Iterator[str]:
    yield from ('{"a": [1, "x", null]}', "[]", '"é😀"', "-1.5e3")


def test_json_values_can_be_written(compiler: GrammarCompiler, vocabulary: ByteVocabulary) -> None:
    compiled = compiler.compile(schema_spec({}))
    for text in _json_texts():
        assert accepts(compiled.new_constraint(), vocabulary, text)


def test_a_grammar_that_becomes_too_complex_fails_with_one_line(
    compiler: GrammarCompiler, vocabulary: ByteVocabulary
) -> None:
    pattern = "((((a{1,30}){1,30}){1,30}){1,30})"
    constraint = compiler.compile(GrammarSpec("regex", pattern)).new_constraint()
    row = np.zeros((PADDED_VOCAB + 31) // 32, dtype=np.int32)

    def write_letters() -> None:
        for _ in range(10_000):
            constraint.fill_bitmask(row)
            constraint.accept(vocabulary.encode("a")[0])

    with pytest.raises(GrammarError) as error_info:
        write_letters()
    assert "\n" not in str(error_info.value)
