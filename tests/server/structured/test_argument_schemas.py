"""No schema of a tool that is not strict refuses a request, and what is enforced is enforced."""

import json
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient
from httpx import Response

from stonechat_models.types import GrammarSpec
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.tools import FunctionTool
from stonechat_server.structured.argument_schemas import ArgumentSchemas
from stonechat_server.structured.tool_options import ToolOptions
from tests.nightly import one_in
from tests.server.bodies import body, error_of, post
from tests.server.fake_engine import FakeEngine
from tests.server.structured.calls import LAYOUTS, calls, enforced
from tests.tool_schemas import all_schemas

SCHEMAS = all_schemas()


def post_tool(client: TestClient, parameters: Any, **fields: Any) -> Response:
    function = {"name": "f", "parameters": parameters, **fields}
    return post(client, tools=[{"type": "function", "function": function}])


@pytest.mark.parametrize("name", one_in(3, SCHEMAS))
def test_schemas_of_common_libraries_are_accepted(name: str, client: TestClient) -> None:
    schema, left_out = SCHEMAS[name]
    response = post_tool(client, schema)
    assert response.status_code == 200, response.json()
    names = [f"tools[0].function.parameters{path}" for path in left_out]
    assert response.headers.get("x-unenforced-schema", "") == ", ".join(names)
    response = post_tool(client, schema, strict=True)
    assert "x-unenforced-schema" not in response.headers
    assert response.status_code == (400 if left_out else 200), response.json()
    if left_out:
        assert error_of(response)["param"] == "tools[0].function.parameters"
        assert error_of(response)["code"] == "invalid_grammar"


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_calls_are_valid(name: str) -> None:
    schema, left_out = SCHEMAS[name]
    tool, paths = enforced(schema)
    assert paths == left_out
    kept = tool.function.parameters if left_out else schema
    assert isinstance(kept, dict)
    is_old = "definitions" in schema
    default = jsonschema.Draft7Validator if is_old else jsonschema.Draft202012Validator
    if '"exclusiveMinimum": true' in json.dumps(schema):
        default = jsonschema.Draft4Validator  # a number in all later drafts
    kind = jsonschema.validators.validator_for(kept, default)
    checker = kind(kept, format_checker=kind.FORMAT_CHECKER)
    other = LAYOUTS[1 + list(SCHEMAS).index(name) % 2]
    for layout in (LAYOUTS[0], other):
        for found in calls(tool, layout):
            assert isinstance(found, dict), layout
            checker.validate(found)


ODD: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "empty": {},
    "array": {"type": "array"},
    "string": {"type": "string"},
    "object or null": {"type": ["object", "null"], "properties": {"a": {"type": "string"}}},
    "type is null": {"type": None, "properties": {"a": {"type": "string"}}},
    "unknown type": {"type": "dict"},
    "upper case": {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}},
    "type of a property": {"properties": {"a": {"type": "str"}, "b": {"type": []}}},
    "type is a number": {"type": 5},
    "nulls": {"type": "object", "properties": None, "required": None, "items": None, "enum": None},
    "malformed": {
        "type": "object",
        "properties": {"a": 5, "b": {"enum": "x"}, "c": {"minLength": "3"}, "d": None},
        "required": "a",
        "additionalProperties": "no",
    },
    "properties is a list": {"type": "object", "properties": ["a"]},
    "broken reference": {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}},
    "remote reference": {"type": "object", "properties": {"a": {"$ref": "http://x.y/z"}}},
    "reference is a number": {"type": "object", "properties": {"a": {"$ref": 5}}},
    "reference to itself": {"$ref": "#"},
    "endless": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "forbidden key": {"type": "object", "properties": {"a": False}},
    "unsatisfiable key": {"type": "object", "properties": {"a": {"type": "string", "enum": [1]}}},
    "undeclared required key": {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "broken pattern": {"type": "object", "properties": {"a": {"type": "string", "pattern": "["}}},
    "draft 3": {"type": "object", "properties": {"a": {"type": "string", "required": True}}},
    "odd names": {"type": "object", "properties": {"": {}, "a b": {}, "</x>": {}, "é\n": {}}},
    "control character": {"type": "object", "properties": {"\0": {}}, "required": ["\0"]},
    "huge numbers": {"properties": {"a": {"type": "integer", "maximum": 10**30, "minLength": 1}}},
    "unknown dialect": {"$schema": "https://example.com/none", "type": "object"},
    "ids": {"$id": "#root", "type": "object", "properties": {"a": {"$id": "#a", "type": "null"}}},
    "dynamic reference": {"type": "object", "properties": {"a": {"$dynamicRef": "#x"}}},
    "patterns overlap": {"type": "object", "patternProperties": {"a": {}, "b": {"type": "null"}}},
}
EXTREME: dict[str, tuple[Any, str]] = {
    "deep": (json.loads('{"items":' * 90 + "{}" + "}" * 90), ".items" * 61),
    "many keys": ({"properties": {f"k{i}": {"type": "null"} for i in range(1500)}}, ".properties"),
    "many values": ({"properties": {"a": {"enum": list(range(25_000))}}}, ".properties.a.enum"),
    "surrogate": ({"properties": {"\ud800": {"type": "string"}}}, ""),
}


@pytest.mark.parametrize("name", ODD)
def test_no_schema_refuses_a_tool_that_is_not_strict(name: str, client: TestClient) -> None:
    response = post_tool(client, ODD[name], strict=False)
    assert response.status_code == 200, response.json()
    assert response.headers.get("x-unenforced-schema", "").isascii()


@pytest.mark.parametrize("name", [name for name in ODD if isinstance(ODD[name], dict)])
def test_calls_of_odd_schemas_have_an_object(name: str) -> None:
    for layout in LAYOUTS:
        tool, _ = enforced(ODD[name])
        for found in calls(tool, layout, 3):
            assert isinstance(found, dict)
            assert found == {} or name != "empty"


@pytest.mark.parametrize("name", EXTREME)
def test_as_little_as_possible_is_left_out_of_an_extreme_schema(name: str) -> None:
    schema, left_out = EXTREME[name]
    assert enforced(schema)[1] == [left_out]


SET: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}},
}
HEADER = "x-unenforced-schema"


def test_the_rest_of_the_schema_is_enforced(client: TestClient, engine: FakeEngine) -> None:
    post_tool(client, SET)
    spec = engine.requests[-1].params.grammar
    assert spec is not None
    assert "uniqueItems" not in spec.source
    assert '{"type": "array", "items": {"type": "integer"}}' in spec.source
    assert "uniqueItems" in engine.prompt


def test_the_header_names_only_tools_that_can_be_called(client: TestClient) -> None:
    tools = [{"type": "function", "function": {"name": n, "parameters": SET}} for n in ("f", "g")]
    choice = {"type": "function", "function": {"name": "g"}}
    name = "tools[1].function.parameters.properties.a.uniqueItems"
    assert post(client, tools=tools, tool_choice=choice).headers[HEADER] == name
    assert HEADER not in post(client, tools=tools, tool_choice="none").headers
    assert HEADER in post(client, tools=tools, stream=True).headers


def test_the_header_of_the_older_form(client: TestClient) -> None:
    response = post(client, functions=[{"name": "f", "parameters": SET}])
    assert response.headers[HEADER] == "functions[0].parameters.properties.a.uniqueItems"


def test_the_header_is_short_and_ascii(client: TestClient) -> None:
    names = [f"é, \r\n{i}" for i in range(60)]
    schema = {"properties": {name: {"uniqueItems": True} for name in names}}
    header = post_tool(client, schema).headers[HEADER]
    assert header.startswith("tools[0].function.parameters.properties.%C3%A9%2C%20%0D%0A0.")
    assert header.endswith(", ...")
    assert len(header) < 1100
    long = {"properties": {"a" * 1500: {"uniqueItems": True}}}
    assert post_tool(client, long).headers[HEADER] == "..."


@pytest.mark.parametrize("parameters", ["x", 5, ["a"], 1.5])
def test_what_is_no_schema_is_refused(parameters: Any, client: TestClient) -> None:
    response = post_tool(client, parameters)
    assert response.status_code == 400
    assert error_of(response)["param"] == "tools[0].function.parameters"


def test_response_formats_are_enforced_or_refused(client: TestClient) -> None:
    for strict in (True, False):
        schema = {"name": "s", "schema": SET, "strict": strict}
        fields = {"response_format": {"type": "json_schema", "json_schema": schema}}
        response = post(client, **fields)
        assert error_of(response)["param"] == "response_format.json_schema.schema"
        assert error_of(response)["code"] == "invalid_grammar"


def test_schemas_of_tools_are_relaxed_once() -> None:
    num_checks = 0

    def count(spec: GrammarSpec) -> None:
        nonlocal num_checks
        num_checks += 1

    tool = FunctionTool.model_validate({"type": "function", "function": {"name": "f"}})
    request = ChatCompletionRequest.model_validate(body(tools=[tool]))
    options = ToolOptions(offered=(tool,), callable=(tool,), is_required=True, is_parallel=True)
    schemas = ArgumentSchemas(count)
    assert schemas.enforce(request, options) == schemas.enforce(request, options)
    assert num_checks == 1
