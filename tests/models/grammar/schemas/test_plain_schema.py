"""The plain form allows the same documents, and has its references in one place."""

import json
from itertools import combinations
from typing import Any

import jsonschema
import pytest

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_models.grammar.schemas.plain_schema import find, plain_schema
from stonechat_models.grammar.source import check_grammar
from tests.models.byte_vocabulary import ByteVocabulary
from tests.models.grammar.test_compiler import accepts, schema_spec
from tests.models.walks import PADDED_VOCAB

TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "plain"),
    [
        ({"minLength": 1.0, "maxLength": 2.5}, {"minLength": 1, "maxLength": 2.5}),
        (
            {"required": ["a"], "allOf": [{"required": ["b", "a"]}, {"anyOf": [{}, {}]}]},
            {"required": ["a", "b"], "anyOf": [{}, {}]},
        ),
        (
            {"allOf": [{"anyOf": [{"required": ["a"]}, {"minProperties": 2}]}, TEXT]},
            {"allOf": [{"anyOf": [{"required": ["a"]}, {"minProperties": 2}]}, TEXT]},
        ),
        (
            {"properties": {"a": TEXT, "b": {"$ref": "#/properties/a"}}},
            {
                "properties": {"a": {"$ref": "#/$defs/a"}, "b": {"$ref": "#/$defs/a"}},
                "$defs": {"a": TEXT},
            },
        ),
        (
            {"properties": {"a": {"$ref": "#/x/y%20z~1w"}}, "x": {"y z/w": TEXT}},
            {"properties": {"a": {"$ref": "#/$defs/y_z_w"}}, "$defs": {"y_z_w": TEXT}},
        ),
        (
            {"properties": {"a": {"$ref": "#"}}},
            {
                "properties": {"a": {"$ref": "#/$defs/root"}},
                "$defs": {"root": {"properties": {"a": {"$ref": "#/$defs/root"}}}},
            },
        ),
        (
            {"items": [{"$ref": "#/$defs/a"}, {"$ref": "#/definitions/a"}], "$defs": {"a": TEXT}}
            | {"definitions": {"a": {"type": "null"}, "unused": {}}},
            {
                "items": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a_2"}],
                "$defs": {"a": TEXT, "a_2": {"type": "null"}},
            },
        ),
        ({"properties": None}, {"properties": {}}),
        (
            {"items": {"properties": [], "additionalProperties": []}, "$defs": [], "not": None},
            {"items": {"properties": {}, "additionalProperties": {}}},
        ),
        (
            {"properties": {"a": [], "b": {"type": "object", "properties": None}}},
            {"properties": {"a": {}, "b": {"type": "object", "properties": {}}}},
        ),
        ({"$ref": "#/definitions/a", "definitions": {"a": TEXT}}, TEXT),
        ({"allOf": [{"$ref": "#/$defs/a"}], "title": "t", "$defs": {"a": TEXT}}, TEXT),
        ({"items": {"anyOf": [TEXT], "type": "string"}}, {"items": TEXT}),
        ({"$defs": {"a": True}, "items": {"$ref": "#/$defs/a"}},) * 2,
        ({"allOf": [TEXT], "type": "null"},) * 2,
        ({"allOf": [{"properties": {}}], "additionalProperties": False},) * 2,
        ({"$ref": "#/$defs/none"},) * 2,
        ({"$ref": "#a", "$defs": {"x": {"$anchor": "a"}}},) * 2,
        ({"$ref": "http://example.com/x", "$id": "http://example.com/"},) * 2,
        ({"$ref": 5},) * 2,
    ],
)
def test_the_plain_form(schema: dict[str, Any], plain: dict[str, Any]) -> None:
    assert plain_schema(schema) == plain
    assert plain_schema(plain) == plain


def test_nested_targets_are_moved_once() -> None:
    """A copy in place of a move would double the schema at each level."""
    schema: dict[str, Any] = {"type": "null"}
    path = "#"
    refs = []
    for _ in range(20):
        schema = {"items": schema}
        path += "/items"
        refs.append({"$ref": path})
    plain = plain_schema({**schema, "prefixItems": refs})
    assert len(plain["$defs"]) == 20
    assert len(str(plain)) < 3000


def test_a_large_schema_is_refused() -> None:
    with pytest.raises(GrammarError):
        plain_schema({"enum": list(range(30_000))})


@pytest.mark.parametrize(
    ("ref", "path"),
    [
        ("#", ()),
        ("#/items/1", ("items", 1)),
        ("#/items/2", None),
        ("#/items/x", None),
        ("#/type", None),
        ("#items", None),
        (None, None),
    ],
)
def test_where_a_reference_leads(ref: object, path: object) -> None:
    assert find({"type": "array", "items": [{}, True]}, ref) == path


def kind(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]}


@pytest.mark.parametrize(
    ("options", "is_accepted"),
    [
        ([{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], True),
        ([{"$ref": "#/$defs/cat"}, {"type": "null"}, {"type": "string"}], True),
        ([{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/cat"}], False),
        ([{"$ref": "#/$defs/cat"}, {"type": "object"}], False),
        ([{"$ref": "#/$defs/cat"}, {}], False),
        ([{"type": "integer"}, {"type": "number"}], False),
        ([{"type": "string", "maxLength": 2}, {"type": "string", "minLength": 1}], False),
        ([{"$ref": "#/$defs/one"}, {"$ref": "#/$defs/float"}], False),
    ],
)
def test_options_that_exclude_each_other_are_accepted(
    options: list[dict[str, Any]], is_accepted: bool
) -> None:
    one = {**kind("x"), "properties": {"kind": {"enum": [1]}}}
    definitions = {"cat": kind("cat"), "dog": kind("dog"), "one": one}
    definitions["float"] = {**one, "properties": {"kind": {"enum": [1.0]}}}
    schema = schema_spec({"items": {"oneOf": options}, "$defs": definitions})
    if is_accepted:
        check_grammar(schema)
    else:
        with pytest.raises(GrammarError, match="oneOf"):
            check_grammar(schema)


ONE_KEY = {
    "type": "object",
    "properties": {name: {"type": "integer"} for name in "abc"},
    "additionalProperties": True,
}


@pytest.mark.parametrize(
    "required",
    [
        [["a"], ["b"]],
        [["a"], ["b"], ["c"]],
        [["a", "b"], ["b", "c"]],
        [["a"], ["b", "c"]],
        [["a"], ["a", "b"]],
        [["a"], ["x"]],
        [["a"], []],
    ],
    ids=str,
)
def test_exactly_one_set_of_keys(required: list[list[str]]) -> None:
    vocabulary = ByteVocabulary()
    schema = {**ONE_KEY, "oneOf": [{"required": names} for names in required]}
    compiled = GrammarCompiler(vocabulary, PADDED_VOCAB).compile(schema_spec(schema))
    is_valid = jsonschema.Draft202012Validator(schema).is_valid
    for names in (n for size in range(4) for n in combinations("abcx", size)):
        document = dict.fromkeys(names, 1)
        is_allowed = accepts(compiled.new_constraint(), vocabulary, json.dumps(document))
        assert is_allowed is is_valid(document), document


def test_exactly_one_of_many_keys() -> None:
    """As many as the arguments of a command may have; more would take too long."""
    vocabulary, names = ByteVocabulary(), [f"k{i}" for i in range(64)]
    properties = {name: {"type": "integer"} for name in names}
    schema = {
        "type": "object",
        "properties": properties,
        "oneOf": [{"required": [name]} for name in names],
    }
    compiled = GrammarCompiler(vocabulary, PADDED_VOCAB).compile(schema_spec(schema))
    for chosen in ((), ("k0",), ("k63",), ("k0", "k63")):
        text = json.dumps(dict.fromkeys(chosen, 1))
        assert accepts(compiled.new_constraint(), vocabulary, text) is (len(chosen) == 1)
    options = [{"required": [name]} for name in (*names, "more")]
    with pytest.raises(GrammarError, match="oneOf"):
        check_grammar(schema_spec({**schema, "oneOf": options}))


@pytest.mark.parametrize("required", [[["a"], ["b"]], [["a"], []]], ids=str)
def test_such_an_object_takes_no_other_keys(required: list[list[str]]) -> None:
    """Like any object that does not mention `additionalProperties`."""
    vocabulary, options = ByteVocabulary(), [{"required": names} for names in required]
    closed = {**ONE_KEY, "oneOf": options, "additionalProperties": False}
    is_valid = jsonschema.Draft202012Validator(closed).is_valid
    given = {key: value for key, value in closed.items() if key != "additionalProperties"}
    schema = {"type": "object", "properties": {"x": given}}
    compiled = GrammarCompiler(vocabulary, PADDED_VOCAB).compile(schema_spec(schema))
    for names in ("", "a", "c", "ac", "ab", "ax", "x"):
        document = dict.fromkeys(names, 1)
        is_allowed = accepts(compiled.new_constraint(), vocabulary, json.dumps({"x": document}))
        assert is_allowed is is_valid(document), names


@pytest.mark.parametrize("properties", ["", 0, False])
def test_properties_that_are_no_object_are_refused(properties: object) -> None:
    option = {"required": ["a"], "properties": properties}
    with pytest.raises(GrammarError):
        check_grammar(schema_spec({**ONE_KEY, "anyOf": [option, {}]}))


@pytest.mark.parametrize("node", [{}, {"type": ["object", "null"]}])
def test_what_is_no_object_has_no_keys(node: dict[str, Any]) -> None:
    """A text has neither key, so both options allow it."""
    with pytest.raises(GrammarError, match="oneOf"):
        check_grammar(schema_spec({**node, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}))


@pytest.mark.parametrize("pattern", [r"^\x01$", r"^[\x00-\x07]$", "^\x7f+$", r"a\u0003"])
def test_a_pattern_that_only_control_characters_match_is_found_at_any_depth(pattern: str) -> None:
    text = {"type": "string", "pattern": pattern}
    optional = {"type": "object", "properties": {"a": text, "b": TEXT}}
    check_grammar(schema_spec(optional))  # it is never begun
    for schema in (text, {**optional, "required": ["a"]}, {"items": text, "minItems": 1}):
        with pytest.raises(GrammarError, match=r"[Uu]nsatisfiable"):
            check_grammar(schema_spec({"type": "array", **schema} if "items" in schema else schema))
