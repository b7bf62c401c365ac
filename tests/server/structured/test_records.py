"""Which arguments pairs of key and value can express, and how the layouts write them."""

from typing import Any

import pytest

from stonechat_server.structured.records import (
    allows_nothing,
    read_record,
    with_definitions,
)
from tests.server.structured.calls import LAYOUTS, arguments, enforced, is_allowed

TEXT: dict[str, Any] = {"type": "string"}
A: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
AB: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
}


def write(layout: str, values: dict[str, Any]) -> str:
    """A call of `f`, as models of the layout's format write it. Values are numbers and strings."""
    match layout:
        case "qwen_coder":
            pairs = (f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
            return f"<tool_call>\n<function=f>\n{''.join(pairs)}</function>\n</tool_call>"
        case "pythonic":
            return "[f(" + ", ".join(f"{k}={quoted(v)}" for k, v in values.items()) + ")]"
        case _:
            pairs = (f'"{k}": {quoted(v)}' for k, v in values.items())
            body = "{" + ", ".join(pairs) + "}"
            return f'<tool_call>\n{{"name": "f", "arguments": {body}}}\n</tool_call>'


def quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {}, "required": []},
        {"type": "object", "additionalProperties": True},
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"type": "object", "patternProperties": {"^x": {}}},
        {"type": "object", "properties": {}, "additionalProperties": {}},
        {"type": "object", "maxProperties": 2},
        {"$ref": "#/$defs/no", "$defs": {"no": {"type": "object", "properties": {}}}},
        A,
    ],
    ids=str,
)
def test_a_call_without_required_keys_may_end_at_once(schema: Any) -> None:
    for layout in LAYOUTS:
        tool, _ = enforced(schema)
        text = write(layout, {})
        assert is_allowed(tool, layout, text)
        assert arguments(tool, layout, text) == {}


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {}, "required": [], "title": "f", "x-y": {}},
        {"type": "object", "additionalProperties": False},
        {"properties": {}, "$id": "x", "$schema": "http://json-schema.org/draft-07/schema#"},
        {"type": "object", "properties": None},
        {"type": "object", "properties": []},
        [],
    ],
    ids=str,
)
def test_a_function_without_keys_takes_none(schema: Any) -> None:
    for layout in LAYOUTS:
        tool, left_out = enforced(schema)
        assert left_out == []
        assert not is_allowed(tool, layout, write(layout, {"a": 1}))
        whole = {"qwen_coder": '<tool_call>\n<function=f>\n{"a": 1}\n</function>\n</tool_call>'}
        assert not is_allowed(tool, layout, whole.get(layout, '[f(**{"a": 1})]'))


@pytest.mark.parametrize(
    "extra",
    [
        {"additionalProperties": True},
        {"additionalProperties": {"type": "string"}},
        {"additionalProperties": {}, "propertyNames": {"type": "string"}},
        {"patternProperties": {"^x-": {}}},
        {"$id": "https://example.com/args", "$comment": "c", "x-order": [1]},
        {"examples": [{"a": 1}], "default": {"a": 1}, "deprecated": True, "readOnly": False},
        {"minProperties": 1},
        {"minProperties": 2},
        {"maxProperties": 2},
        {"maxProperties": 9, "minProperties": 0},
        {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"required": ["a"], "minProperties": 2},
        {"unevaluatedProperties": True, "$defs": {"unused": {}}, "definitions": {}},
        {"required": None, "description": None, "nullable": False},
    ],
    ids=str,
)
def test_keywords_that_keys_can_satisfy_do_not_change_the_form(extra: dict[str, Any]) -> None:
    for layout in LAYOUTS:
        tool, _ = enforced({**AB, **extra})
        text = write(layout, {"a": 1, "b": "x"})
        assert is_allowed(tool, layout, text)
        assert arguments(tool, layout, text) == {"a": 1, "b": "x"}


@pytest.mark.parametrize(
    ("extra", "refused"),
    [
        ({"minProperties": 1}, [{}]),
        ({"required": ["a"], "minProperties": 2}, [{}, {"a": 1}, {"b": "x"}]),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{}]),
        ({"required": ["b"], "additionalProperties": True}, [{}, {"a": 1}]),
    ],
    ids=str,
)
def test_such_keywords_are_enforced(extra: dict[str, Any], refused: list[dict[str, Any]]) -> None:
    for layout in LAYOUTS:
        tool, left_out = enforced({**AB, **extra})
        assert left_out == []
        for values in refused:
            assert not is_allowed(tool, layout, write(layout, values))


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/Args", "$defs": {"Args": AB}},
        {"allOf": [{"$ref": "#/definitions/Args"}], "definitions": {"Args": AB}},
        {"$ref": "#/components/schemas/A%20b", "components": {"schemas": {"A b": AB}}},
        {"anyOf": [AB], "title": "t"},
        {**AB, "properties": {**AB["properties"], "b": {"allOf": [{"type": "string"}]}}},
        {
            **AB,
            "properties": {**AB["properties"], "b": {"$ref": "#/$defs/s"}},
            "$defs": {"s": TEXT},
        },
        {"properties": {"c": {"type": "string"}, "a": {}, "b": {"$ref": "#/properties/c"}}},
        {"type": ["object", "null"], **{k: v for k, v in AB.items() if k != "type"}},
        {"properties": A["properties"], "required": ["b"], "additionalProperties": TEXT},
    ],
    ids=str,
)
def test_references_and_single_parts_do_not_change_the_form(schema: Any) -> None:
    for layout in LAYOUTS:
        tool, left_out = enforced(schema)
        assert left_out == []
        text = write(layout, {"a": 1, "b": "x"})
        assert is_allowed(tool, layout, text)
        assert arguments(tool, layout, text) == {"a": 1, "b": "x"}


def test_what_keys_cannot_decide_is_no_record() -> None:
    def is_record(schema: dict[str, Any]) -> bool:
        return read_record(schema, str.isidentifier) is not None

    assert is_record(AB)
    assert is_record({"properties": {"a": False}})
    for extra in (
        {"maxProperties": 1},
        {"minProperties": 3},
        {"required": ["c"]},
        {"allOf": [{}, {}]},
        {"anyOf": [{"required": ["a"]}, {"properties": {}}]},
        {"anyOf": [{"required": ["a"]}, {"type": "array"}]},
        {"properties": {"a b": {}}},
        {"properties": {"a": {"$ref": "#"}}},
    ):
        assert not is_record({**AB, **extra}), extra


def test_nothing_is_allowed_where_nothing_is_demanded() -> None:
    assert allows_nothing({"type": "object", "required": []})
    for extra in ({"required": ["a"]}, {"minProperties": 1}, {"anyOf": []}, {"not": {}}):
        assert not allows_nothing({"type": "object", **extra})


def test_a_value_takes_only_the_definitions_that_it_needs() -> None:
    definitions = {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"$ref": "#/$defs/a"}, "c": {}}
    value = with_definitions({"$ref": "#/$defs/a"}, {"$defs": definitions})
    assert value["$defs"].keys() == {"a", "b"}
    assert with_definitions({"type": "null"}, {"$defs": definitions}) == {"type": "null"}
    assert with_definitions(True, {"$defs": definitions}) is True


@pytest.mark.parametrize("space", ["", " ", "\n"])
def test_no_arguments_are_written_without_space(space: str) -> None:
    tool, _ = enforced({"type": "object", "properties": {}})
    text = f'<tool_call>\n{{"name": "f", "arguments": {{{space}}}}}\n</tool_call>'
    assert is_allowed(tool, "hermes", text) == (space == "")
