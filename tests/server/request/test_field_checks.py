"""No key of a request is dropped in silence: it is honoured, named in a header, or refused."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.schema.fields import UNSUPPORTED_FORMS
from tests.server.bodies import ask, error_of, post
from tests.server.conftest import ClientFactory

USER = {"role": "user", "content": "hi"}
PARAMETERS = {"type": "object", "properties": {"x": {"type": "string", "x-note": 1}}}
FUNCTION = {"name": "f", "parameters": PARAMETERS, "x": 1}
TOOL = {"type": "function", "function": FUNCTION}
TEXT = {"type": "text", "text": "hi", "x": {}}
CHOICE = {"type": "function", "function": {"name": "f", "x": 1}, "y": 1}
CUSTOM = {"name": "f", "format": {"type": "text", "x": 1}}
GRAMMAR = {"definition": "a+", "syntax": "regex", "x": 1}
SCHEMA = {"name": "s", "schema": {"type": "object", "x": 1}, "x": True}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}", "x": 1}, "y": 1}

UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"foo": 1, "stream": True, "stream_options": {"bar": 1}}, "foo, stream_options.bar"),
    ({"extra_body": {"guided_json": {}}}, "extra_body"),
    ({"typical_p": 0.5, "guided_decoding_backend": "x"}, "typical_p, guided_decoding_backend"),
    ({"foo": None, "bar": []}, ""),
    ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x"),
    ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
        "response_format.json_schema.x",
    ),
    ({"structured_outputs": {"regex": "a", "x": 1}}, "structured_outputs.x"),
    ({"tools": [TOOL | {"y": 1}]}, "tools[0].y, tools[0].function.x"),
    ({"tools": [{"type": "custom", "custom": CUSTOM}]}, "tools[0].custom.format.x"),
    (
        {
            "tools": [
                {"type": "function", "function": {"name": "g"}},
                {
                    "type": "custom",
                    "custom": {"name": "f", "format": {"type": "grammar", "grammar": GRAMMAR}},
                },
            ]
        },
        "tools[1].custom.format.grammar.x",
    ),
    (
        {"tools": [TOOL], "tool_choice": CHOICE},
        "tools[0].function.x, tool_choice.y, tool_choice.function.x",
    ),
    (
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [CHOICE], "z": 1},
            },
        },
        "tool_choice.allowed_tools.z, tool_choice.allowed_tools.tools[0].y, "
        "tool_choice.allowed_tools.tools[0].function.x",
    ),
    ({"functions": [FUNCTION]}, "functions[0].x"),
    ({"functions": [{"name": "f"}], "function_call": {"name": "f", "x": 1}}, "function_call.x"),
    ({"prediction": {"type": "content", "content": [TEXT], "x": 1}},
     "prediction.x, prediction.content[0].x"),
    ({"reasoning": {"effort": "low", "exclude": True}}, "reasoning.exclude"),
    ({"messages": [USER, {"role": "user", "content": [TEXT, TEXT]}]},
     "messages[1].content[0].x, messages[1].content[1].x"),
    ({"messages": [{"role": "system", "content": [TEXT]}, USER]}, "messages[0].content[0].x"),
    ({"messages": [USER | {"x": 1}, {"role": "assistant", "content": "", "tool_calls": [CALL]}]},
     ""),
    (
        {
            "messages": [
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "1", "content": [TEXT]},
            ]
        },
        "messages[1].content[0].x",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "names"), UNKNOWN)
def test_unknown_keys_are_named_with_their_paths(
    client: TestClient, fields: dict[str, Any], names: str
) -> None:
    response = post(client, **fields)
    assert response.status_code == 200, response.text
    assert response.headers.get("x-ignored-params", "") == names


@pytest.mark.parametrize(("fields", "names"), UNKNOWN)
def test_strict_params_refuses_unknown_keys(
    new_client: ClientFactory, fields: dict[str, Any], names: str
) -> None:
    client = new_client(strict_params=True)
    response = post(client, **fields)
    if not names:
        assert response.status_code == 200
        return
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == (names.split(", ")[0], "unknown_parameter")
    assert f"'{error['param']}'" in error["message"]
    ask(client)


def test_names_of_unknown_keys_cannot_break_the_header(client: TestClient) -> None:
    response = post(client, **{"a\r\nset-cookie: x": 1, "é, b": 2})
    assert response.headers["x-ignored-params"] == "a%0D%0Aset-cookie%3A%20x, %C3%A9%2C%20b"
    response = post(client, **{f"field{i}": 1 for i in range(1000)})
    assert len(response.headers["x-ignored-params"]) < 1100
    assert response.headers["x-ignored-params"].endswith(", ...")
    response = post(client, stream=True, stream_options={"k" * 100_000: 1})
    name = response.headers["x-ignored-params"]
    assert name.startswith("stream_options.kkk")
    assert len(name) < 1100
    response = post(client, **{"\n👋" * 1000: 1})
    assert len(response.headers["x-ignored-params"]) < 1100


@pytest.mark.parametrize("path", UNSUPPORTED_FORMS)
def test_an_unknown_name_that_asks_for_a_form_is_refused(client: TestClient, path: str) -> None:
    name, _, key = path.partition(".")
    form = {"type": "object"}
    error = error_of(post(client, **{name: {key: form} if key else form}))
    assert (error["param"], error["code"]) == (path, "unsupported_parameter")
    assert "use structured_outputs" in error["message"]
    assert post(client, **{name: {"other": 1} if key else None}).status_code == 200
