"""Keywords that constrain nothing are accepted wherever they stand, and change nothing."""

from typing import Any

import pytest

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.schemas.annotations import without_annotations
from stonechat_models.grammar.source import check_grammar
from stonechat_models.types import GrammarSpec
from tests.models.grammar.test_compiler import schema_spec


def nested(node: dict[str, Any]) -> GrammarSpec:
    """The schema below a property, with all of JSON as its values."""
    return schema_spec({"type": "object", "properties": {"a": {"items": node}}})


@pytest.mark.parametrize(
    "keywords",
    [
        {"title": "t", "description": "d", "default": 1, "examples": [1], "$comment": "c"},
        {"deprecated": True, "readOnly": True, "writeOnly": False, "contentMediaType": "text/x"},
        {"x-order": [1], "nullable": True, "discriminator": {"propertyName": "a"}, "example": 1},
        {"$id": "https://example.com/x", "$anchor": "x", "$dynamicAnchor": "y", "id": "#z"},
        {"$schema": "https://example.com/dialect", "$vocabulary": {}},
        {"$schema": "https://json-schema.org/draft-07/schema"},
        *({"type": "string", "format": name} for name in ("password", "path", "decimal", "int64")),
        {"propertyNames": True},
        {"propertyNames": {}},
        {"propertyNames": {"type": "string", "title": "Key", "minLength": 0}},
        {"propertyNames": {"type": ["string", "null"]}, "additionalProperties": {}},
        {"uniqueItems": False},
        {"uniqueItems": True, "maxItems": 1},
        {"minProperties": 0, "minItems": 0, "minLength": 0},
        {"then": {"not": {}}, "else": {"not": {}}},
        {"if": {"type": "string"}},
        {"minContains": 2, "maxContains": 1},
        {"not": False},
        {"unevaluatedItems": True, "unevaluatedProperties": {}},
        {"dependentRequired": {}, "dependencies": {}, "patternProperties": {}, "allOf": []},
        {"required": True},
        {"required": None, "properties": None, "type": None, "enum": None, "anyOf": None},
        {"minLength": 2.0, "maxItems": 3.0},
    ],
    ids=str,
)
def test_what_constrains_nothing_is_accepted(keywords: dict[str, Any]) -> None:
    check_grammar(schema_spec(keywords))
    check_grammar(nested(keywords))


@pytest.mark.parametrize(
    "keywords",
    [
        {"type": "string", "format": "idn-email"},
        {"type": "string", "format": 5},
        {"propertyNames": {"pattern": "^x"}},
        {"propertyNames": {"type": "null"}},
        {"propertyNames": False},
        {"uniqueItems": True},
        {"contains": {}, "minContains": 2},
        {"unevaluatedProperties": False},
    ],
    ids=str,
)
def test_what_constrains_something_is_refused(keywords: dict[str, Any]) -> None:
    with pytest.raises(GrammarError):
        check_grammar(nested(keywords))


def test_values_that_are_no_schemas_stay() -> None:
    schema = {"const": {"title": "t"}, "enum": [{"title": "t"}], "properties": {"title": True}}
    assert without_annotations({**schema, "title": "t"}, keep_ids=False) == schema
    assert without_annotations({"const": None}, keep_ids=False) == {"const": None}


def test_ids_stay_where_references_need_them() -> None:
    schema = {"properties": {"a": {"$id": "x"}}}
    assert without_annotations(schema, keep_ids=True) == schema
    assert without_annotations(schema, keep_ids=False) == {"properties": {"a": {}}}
