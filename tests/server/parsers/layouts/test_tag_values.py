"""How values between tags are written and read, by their schema."""

from typing import Any

import pytest

from stonechat_server.parsers.layouts.tag_values import (
    ValueForm,
    is_whole,
    read_value,
    resolve,
    text_schema,
    value_form,
)

TAG = "</v>"
STRING, NULL, NUMBER = {"type": "string"}, {"type": "null"}, {"type": "number"}


def test_a_reference_is_followed_to_its_definition() -> None:
    schema = {
        "$defs": {"a": {"$ref": "#/definitions/b", "description": "x"}},
        "definitions": {"b": STRING},
    }
    assert resolve({"$ref": "#/$defs/a"}, schema) == STRING
    assert resolve(STRING, schema) == STRING
    assert resolve(True, schema) is True
    for joined in ({"allOf": [STRING]}, {"anyOf": [{"$ref": "#/$defs/a"}], "title": "x"}):
        assert resolve(joined, schema) == STRING


@pytest.mark.parametrize(
    "value",
    [
        {"$ref": "#/$defs/missing"},
        {"$ref": "#/elsewhere/a"},
        {"$ref": "#/$defs/a", "minLength": 3},
        {"$ref": 7},
        {"allOf": [STRING, NUMBER]},
        {"allOf": [STRING], "minLength": 3},
        {"allOf": STRING},
    ],
)
def test_other_references_are_left_alone(value: dict[str, Any]) -> None:
    assert resolve(value, {"$defs": {"a": STRING}}) == value


def test_references_in_a_circle_end() -> None:
    schema = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    assert resolve({"$ref": "#/$defs/a"}, schema) in (schema["$defs"]["a"], schema["$defs"]["b"])


@pytest.mark.parametrize(
    ("schema", "form"),
    [
        (STRING, ValueForm.TEXT),
        ({**STRING, "maxLength": 5, "title": "x"}, ValueForm.TEXT),
        ({"enum": ["a", "b"]}, ValueForm.TEXT),
        ({"const": "a"}, ValueForm.TEXT),
        ({**STRING, "pattern": "a+"}, ValueForm.JSON),
        ({**STRING, "enum": ["a"], "maxLength": 3}, ValueForm.JSON),
        ({"enum": ["a", TAG]}, ValueForm.JSON),
        ({"enum": ["a", 1]}, ValueForm.JSON),
        ({"enum": ["a"], "const": "a"}, ValueForm.JSON),
        (NUMBER, ValueForm.JSON),
        ({}, ValueForm.JSON),
        (True, ValueForm.JSON),
        ({"anyOf": [STRING, NULL]}, ValueForm.TEXT_OR_NULL),
        ({"anyOf": [NULL, {"enum": ["a", "b"]}], "default": None}, ValueForm.TEXT_OR_NULL),
        ({"anyOf": [{"enum": ["a", "null"]}, NULL]}, ValueForm.JSON),
        ({"anyOf": [STRING, NUMBER]}, ValueForm.JSON),
        ({"anyOf": [STRING, NULL, NUMBER]}, ValueForm.JSON),
        ({"anyOf": [STRING, NULL], "minLength": 1}, ValueForm.JSON),
        ({"type": ["string", "null"]}, ValueForm.TEXT_OR_NULL),
        ({"type": ["null", "string"], "description": "x"}, ValueForm.TEXT_OR_NULL),
        ({"type": ["string", "null"], "maxLength": 5}, ValueForm.JSON),
        ({"type": ["string", "integer"]}, ValueForm.JSON),
    ],
)
def test_the_form_of_a_schema(schema: object, form: ValueForm) -> None:
    assert value_form(schema, TAG) is form


def test_the_text_of_a_value_that_may_be_null() -> None:
    assert text_schema({"anyOf": [NULL, {"enum": ["a"]}]}) == {"enum": ["a"]}
    assert text_schema(STRING) == STRING


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("7", STRING, "7"),
        ("7", {"type": "integer"}, 7),
        ("7", NUMBER, 7),
        ("7.5", {"type": "integer"}, 7.5),
        ("7", {}, 7),
        ("7", True, 7),
        ("7", {"enum": ["7", "8"]}, "7"),
        ("7", {"enum": [7, 8]}, 7),
        ("true", {"const": True}, True),
        ("True", {"type": "boolean"}, True),
        ("None", {"type": ["string", "null"]}, None),
        ("None", STRING, "None"),
        ("{'a': 1}", {"type": "object"}, {"a": 1}),
        ("[1]", {"anyOf": [STRING, NUMBER]}, "[1]"),
        ("1", {"anyOf": [STRING, NUMBER]}, 1),
        ("[1]", {"oneOf": [{"type": "array"}, STRING]}, [1]),
        ("[1]", {"anyOf": [STRING, {}]}, [1]),
        ("(1, 2)", {"type": "array"}, "(1, 2)"),
        ("plain words", NUMBER, "plain words"),
        ("0x1F", {}, "0x1F"),
        ("1_000", {"type": ["string", "integer"]}, "1_000"),
        ("1 # one", {"type": ["string", "number"]}, "1 # one"),
        ("1_000", {"type": "integer"}, 1000),
        ("-1.5e3", {}, -1500.0),
    ],
)
def test_a_value_is_read_by_its_schema(text: str, schema: object, value: object) -> None:
    read = read_value(text, schema)
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("[1, 2]", True),
        ("[1, 2", False),
        (' {"a": ', False),
        ('"a', False),
        ('"a"', True),
        ("plain", True),
        ("", True),
    ],
)
def test_a_literal_that_has_only_begun_is_not_whole(text: str, whole: bool) -> None:
    assert is_whole(text) is whole
