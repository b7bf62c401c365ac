"""A value fits a schema exactly where jsonschema, the reference, says that it validates."""

from typing import Any

import jsonschema
import pytest

from stonechat_server.parsers.schema_fit import fits

VALUES: list[Any] = [
    {},
    {"city": "Paris"},
    {"city": "Paris", "days": 3},
    {"city": "Paris", "days": 3.0},
    {"city": "Paris", "days": 3.5},
    {"city": "Paris", "days": True},
    {"city": None},
    {"town": "Paris"},
    {"city": ["Paris"]},
    {"city": []},
    {"city": {"name": "Paris", "in": {"name": "France"}}},
    {"city": {"name": 1}},
    {"city": 1},
    {"city": 1.0},
    {"city": ["x", 1]},
    {"city": ["x", "y"]},
    {"city": ["x", 1, {"a": [True]}]},
    {"city": 40},
    {"city": "a very long name of a city"},
]
SCHEMAS: list[Any] = [
    True,
    False,
    {},
    {"type": "object", "properties": {}},
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    {"properties": {"city": {}, "days": {"type": "integer"}}, "additionalProperties": False},
    {"properties": {"days": {"type": "number"}}, "additionalProperties": {"type": "string"}},
    {"properties": {"city": {"type": ["string", "null"]}}},
    {"properties": {"city": {"enum": ["Paris", 1]}}},
    {"properties": {"city": {"const": True}}},
    {"properties": {"city": {"anyOf": [{"type": "null"}, {"type": "array"}]}}},
    {"properties": {"city": {"allOf": [{"type": "string"}, {"minLength": 6}]}}},
    {"properties": {"city": {"type": "array", "items": {"type": "string"}, "minItems": 1}}},
    {"properties": {"city": {"maxItems": 0, "maxLength": 5, "minimum": 2, "maximum": 9}}},
    {"properties": {"city": {"enum": [1.0, ["x", 1.0], ["x", True]]}}},
    {"properties": {"city": {"const": ["x", 1, {"a": [1]}]}}},
    {"properties": {"city": {"prefixItems": [{"type": "string"}], "items": {"type": "number"}}}},
    {"properties": {"city": {"prefixItems": [{}, {"type": "integer"}], "items": False}}},
    {"properties": {"city": {"exclusiveMinimum": 1, "exclusiveMaximum": 40}}},
    {
        "properties": {"city": {"$ref": "#/$defs/place"}},
        "$defs": {
            "place": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "in": {"$ref": "#/$defs/place"}},
            }
        },
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_a_value_fits_where_it_validates(schema: Any) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    for value in VALUES:
        root = schema if isinstance(schema, dict) else {}
        assert fits(value, schema, root) is validator.is_valid(value), value


@pytest.mark.parametrize(
    "schema", [{"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}]
)
def test_a_schema_that_never_ends_fits_nothing(schema: dict[str, Any]) -> None:
    assert not fits({}, schema, schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": 1, "required": 2, "enum": 3, "anyOf": []},
        {"type": ["object"], "$ref": "https://example.org", "minimum": "x"},
        {"patternProperties": {"^c": {}}, "additionalProperties": False, "pattern": "("},
    ],
)
def test_what_is_not_understood_constrains_nothing(schema: dict[str, Any]) -> None:
    is_valid = fits({"city": "Paris"}, schema, schema)
    assert is_valid is (schema.get("anyOf") is None)


def test_each_pair_of_a_value_and_a_schema_is_checked_once() -> None:
    again = {"$ref": "#/$defs/a"}
    options = [{"type": "string"}, again, dict(again), dict(again)]
    schema = {"properties": {"a": again}, "$defs": {"a": {"anyOf": options}}}
    assert not fits({"a": {"b": 1}}, schema, schema)
    assert fits({"a": "b"}, schema, schema)


def test_a_check_of_too_many_steps_is_no_fit() -> None:
    schema = {"items": {"anyOf": [{"type": "string"}] * 50 + [{"type": "integer"}]}}
    assert fits(list(range(100)), schema, schema)
    many = {"items": {"anyOf": [{"const": -i} for i in range(1, 100)] + [{"type": "integer"}]}}
    assert not fits(list(range(100_000)), many, many)
