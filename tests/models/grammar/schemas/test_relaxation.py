"""What cannot be enforced is left out and named; the rest stays."""

import json
from typing import Any

import pytest

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.schemas import relaxation
from stonechat_models.grammar.schemas.relaxation import relax_schema
from stonechat_models.grammar.source import check_grammar
from stonechat_models.types import GrammarSpec


def is_enforceable(schema: dict[str, Any]) -> bool:
    try:
        check_grammar(GrammarSpec("json_schema", json.dumps(schema)))
    except GrammarError:
        return False
    return True


def relaxed(schema: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    before = json.dumps(schema)
    found, paths = relax_schema(schema, is_enforceable)
    assert json.dumps(schema) == before
    assert is_enforceable(found)
    return found, [".".join(map(str, path)) for path in paths]


KEPT = {"type": "string", "maxLength": 3}


@pytest.mark.parametrize(
    ("value", "left_out", "rest"),
    [
        ({"type": "string", "format": "email", "pattern": "^(?!x)a"}, "pattern", {"format"}),
        ({"type": "string", "pattern": "(a)\\1", "minLength": 1}, "pattern", {"minLength"}),
        ({"type": "string", "pattern": "[", "minLength": 1}, "pattern", {"minLength"}),
        ({"type": "string", "format": "regex", "maxLength": 3}, "format", {"maxLength"}),
        ({"type": "array", "uniqueItems": True, "maxItems": 3}, "uniqueItems", {"maxItems"}),
        ({"type": "array", "contains": {}, "items": KEPT}, "contains", {"items"}),
        ({"type": "object", "propertyNames": {"maxLength": 2}}, "propertyNames", set()),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired", set()),
        ({"not": {"type": "string"}, "type": "integer"}, "not", {"type"}),
        ({"type": "strin", "maxLength": 3}, "type", {"maxLength"}),
        ({"type": "string", "maxLength": "3"}, "maxLength", {"type"}),
        ({"type": "string", "minLength": 4, "maxLength": 3}, "maxLength", {"minLength"}),
        ({"type": "number", "multipleOf": 0, "minimum": 1}, "multipleOf", {"minimum"}),
        ({"type": "integer", "minimum": 2**65, "maximum": 2**66}, "minimum", {"maximum"}),
        ({"enum": [], "type": "string"}, "enum", {"type"}),
        ({"$ref": "#/$defs/none"}, "$ref", set()),
        ({"$ref": "https://example.com/x", "maxLength": 3}, "$ref", {"maxLength"}),
        ({"anyOf": [KEPT, 5]}, "anyOf.1", {"anyOf"}),
        ({"properties": {"b": 5}}, "properties.b", {"properties"}),
        ({"additionalProperties": "x", "type": "object"}, "additionalProperties", {"type"}),
    ],
    ids=str,
)
def test_only_the_culprit_is_left_out(value: dict[str, Any], left_out: str, rest: set[str]) -> None:
    schema = {"type": "object", "properties": {"a": value, "b": KEPT}, "required": ["a"]}
    found, paths = relaxed(schema)
    assert paths == [f"properties.a.{left_out}"]
    assert rest <= found["properties"]["a"].keys()
    assert found["properties"]["b"] == KEPT
    assert found["required"] == ["a"]


def test_an_option_that_could_match_with_another_becomes_one_of_any() -> None:
    schema = {"oneOf": [KEPT, {"type": "string", "minLength": 1}]}
    assert relaxed(schema) == ({"anyOf": schema["oneOf"]}, ["oneOf"])
    definitions = {"a": KEPT, "b": {"type": "string", "minLength": 1}}
    schema = {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": definitions}
    found, paths = relaxed(schema)
    assert paths == ["oneOf"]
    assert found["anyOf"] == schema["oneOf"]


def test_a_definition_is_relaxed_where_it_stands() -> None:
    bad = {"type": "array", "minItems": 3, "maxItems": 2}
    schema = {"properties": {"a": {"$ref": "#/$defs/bad"}}, "$defs": {"bad": bad, "good": KEPT}}
    found, paths = relaxed(schema)
    assert paths == ["$defs.bad.maxItems"]
    assert found["properties"] == schema["properties"]


def test_other_keys_are_allowed_where_patterns_are_left_out() -> None:
    patterns = {"a": {"type": "string"}, "b": {"type": "null"}}
    schema = {"properties": {"c": KEPT}, "patternProperties": patterns}
    found, paths = relaxed({**schema, "additionalProperties": False})
    assert paths == ["patternProperties"]
    assert found["additionalProperties"] is True
    assert found["properties"] == {"c": KEPT}


def test_what_has_no_culprit_keeps_names_and_types() -> None:
    properties = {"a": {"anyOf": [KEPT]}, "b": KEPT}
    skeleton = {
        "type": "object",
        "properties": {"a": {}, "b": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": True,
    }
    schema = {"type": "object", "properties": properties, "required": ["a", "c"]}
    assert relax_schema(schema, lambda found: found == skeleton) == (skeleton, [()])


def test_a_schema_that_can_be_enforced_is_returned_as_it_is() -> None:
    schema = {"type": "object", "title": "t", "properties": {"a": KEPT}}
    assert relax_schema(schema, is_enforceable) == (schema, [])


def test_the_number_of_checks_is_limited() -> None:
    num_checks = 0

    def refuse(schema: dict[str, Any]) -> bool:
        nonlocal num_checks
        num_checks += 1
        return False

    schema = {"type": "object", "properties": {f"k{i}": {"minimum": i} for i in range(900)}}
    assert relax_schema(schema, refuse) == ({"type": "object"}, [()])
    assert num_checks <= relaxation.MAX_CHECKS + 2
