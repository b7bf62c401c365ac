"""Errors: Anthropic's shape and types, and the names of what the client sent."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import EngineDeadError
from stonechat_server.access.keys_file import add_key
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, model_info, output
from tests.server.messages_api.answers import URL, body, error_of, post
from tests.server.messages_api.scripts import text_script
from tests.server.messages_api.test_answers import WEATHER
from tests.server.messages_api.test_requests import FORMAT, SCHEMA, USER, result, text

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf"}}


def user(*blocks: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(blocks)}]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": -2}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
    ({"messages": user()}, "messages[0].content"),
    ({"messages": user({"type": "text"})}, "messages[0].content[0].text"),
    ({"messages": user({"type": "new"})}, "messages[0].content[0].type"),
    ({"messages": user(IMAGE)}, "messages[0].content[0]"),
    ({"messages": user(text("a"), PDF)}, "messages[0].content[1].source"),
    ({"messages": user(result("1", [IMAGE]))}, "messages[0].content[0].content[0]"),
    (
        {"messages": user(result("1", [{"type": "tool_reference", "tool_name": "x"}]))},
        "messages[0].content[0].content[0]",
    ),
    (
        {"messages": [USER, {"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
        "messages[1].content[0]",
    ),
    ({"messages": user({"type": "container_upload"})}, "messages[0].content[0]"),
    ({"system": [IMAGE]}, "system[0].type"),
    ({"temperature": 3}, "temperature"),
    ({"stop_sequences": ["a", ""]}, "stop_sequences[1]"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    ({"tools": [WEATHER, {**WEATHER, "description": "x"}]}, "tools[1].name"),
    ({"tools": [WEATHER, {"type": "web_search_20250305", "name": "w"}]}, "tools[1].type"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
    (
        {"tools": [WEATHER | {"strict": True, "input_schema": {"type": "array"}}]},
        "tools[0].input_schema",
    ),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
    ({"thinking": {"type": "sometimes"}}, "thinking.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    (
        {"output_config": {"format": FORMAT | {"schema": {"type": "x"}}}},
        "output_config.format.schema",
    ),
    ({"output_format": FORMAT | {"schema": {"type": "x"}}}, "output_format.schema"),
    (
        {"output_config": {"format": FORMAT}, "output_format": FORMAT | {"schema": {}}},
        "output_format",
    ),
    (
        {"output_config": {"format": FORMAT}, "structured_outputs": {"json": {}}},
        "structured_outputs",
    ),
    ({"output_config": {"effort": "low"}, "reasoning_effort": "high"}, "reasoning_effort"),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 9}, "thinking_budget": 8},
        "thinking.budget_tokens",
    ),
    ({"container": "c"}, "container"),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
    ({"thread": {"type": "create"}}, "thread"),
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"guided_json": SCHEMA}, "guided_json"),
    ({"stop_token_ids": [256]}, "stop_token_ids[0]"),
    ({"min_tokens": 200}, "min_tokens"),
]


@pytest.mark.parametrize(("fields", "name"), BAD)
def test_a_bad_request_names_what_is_wrong(
    client: TestClient, fields: dict[str, Any], name: str
) -> None:
    response = post(client, **fields)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert name in error["message"]
    for other in ("response_format", ".parameters", ".function", "thinking_budget"):
        assert other in fields or other not in error["message"]


def test_details(client: TestClient) -> None:
    details = post(client, messages=user(IMAGE)).json()["error"]["details"]
    assert details == {"error_code": "unsupported_parameter", "param": "messages[0].content[0]"}
    details = client.post(URL, content=b"{").json()["error"]["details"]
    assert details == {"error_code": "invalid_json"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"a": NaN}'])
def test_a_body_that_is_no_request(client: TestClient, content: bytes) -> None:
    for path in (URL, f"{URL}/count_tokens"):
        response = client.post(path, content=content)
        assert response.status_code == 400
        assert error_of(response)["type"] == "invalid_request_error"


def test_unknown_fields_can_be_refused(new_client: ClientFactory) -> None:
    client = new_client(strict_params=True)
    message = error_of(post(client, tools=[WEATHER | {"defer_loading": True}]))["message"]
    assert message == "Unknown parameter: 'tools[0].defer_loading'."
    assert post(client, tools=[WEATHER]).status_code == 200


def test_a_prompt_that_is_too_long_is_said_so_in_the_known_words(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.model = model_info(max_model_len=30)
    response = post(client, system="x" * 100)
    num_tokens = client.post(f"{URL}/count_tokens", json=body(system="x" * 100)).json()
    assert response.status_code == 400
    expected = f"prompt is too long: {num_tokens['input_tokens']} tokens > 29 maximum"
    assert error_of(response)["message"] == expected


def test_a_model_that_is_not_served(client: TestClient) -> None:
    response = post(client, model="claude-sonnet-4-5")
    assert response.status_code == 404
    error = error_of(response)
    assert error["type"] == "not_found_error"
    assert "'claude-sonnet-4-5' does not exist here. Available: 'tiny-test'." in error["message"]


@pytest.mark.parametrize("name", ["claude-sonnet-4-5", "haiku"])
def test_a_model_may_have_several_names(new_client: ClientFactory, name: str) -> None:
    client = new_client(served_model_name=["claude-sonnet-4-5", "haiku"])
    response = post(client, model=name)
    assert response.status_code == 200
    assert response.json()["model"] == name


@pytest.mark.parametrize("path", [URL, f"{URL}/count_tokens"])
def test_keys(new_client: ClientFactory, path: str) -> None:
    client = new_client(api_key=["secret"])
    response = client.post(path, json=body())
    assert response.status_code == 401
    assert error_of(response)["type"] == "authentication_error"
    for headers in ({"x-api-key": "secret"}, {"authorization": "Bearer secret"}):
        headers["anthropic-version"] = "2023-06-01"
        headers["anthropic-beta"] = "anything"
        assert client.post(f"{path}?beta=true", json=body(), headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_models_have_errors_of_the_shape_that_the_header_asks_for(
    new_client: ClientFactory, path: str
) -> None:
    client = new_client(api_key=["secret"])
    headers = {"anthropic-version": "2023-06-01"}
    assert error_of(client.get(path, headers=headers))["type"] == "authentication_error"
    assert error_of(client.post(path, headers=headers))["type"] == "invalid_request_error"
    headers["x-api-key"] = "secret"
    response = client.get(f"{path}/nothing", headers=headers)
    assert (response.status_code, error_of(response)["type"]) == (404, "not_found_error")
    assert "'nothing' does not exist here" in error_of(response)["message"]
    del headers["anthropic-version"]
    assert client.get(f"{path}/nothing", headers=headers).json()["error"]["param"] == "model"
    assert "type" not in client.get(path).json()


def test_the_results_of_calls_count_as_messages(new_client: ClientFactory) -> None:
    client = new_client(max_messages=3)
    assert post(client, messages=user(*[result("1", "a")] * 3)).status_code == 200
    response = post(client, messages=user(*[result("1", "a")] * 4))
    assert response.json()["error"]["details"]["error_code"] == "too_many_messages"
    error = error_of(response)
    assert "There are 4 messages (the result of a tool counts as one)" in error["message"]


def test_other_paths_and_methods(client: TestClient) -> None:
    response = client.get(URL)
    assert (response.status_code, error_of(response)["type"]) == (405, "invalid_request_error")
    response = client.post(f"{URL}/batches", json={})
    assert (response.status_code, error_of(response)["type"]) == (404, "not_found_error")


def test_a_body_that_is_too_large(new_client: ClientFactory) -> None:
    client = new_client(max_body_size=1000)
    response = post(client, system="x" * 1000)
    assert response.status_code == 413
    assert error_of(response)["type"] == "request_too_large"


def test_a_key_beyond_its_limit(new_client: ClientFactory, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.toml", "alice", requests_per_minute=1)
    client = new_client(keys_file=tmp_path / "keys.toml")
    headers = {"x-api-key": key}
    assert client.post(URL, json=body(), headers=headers).status_code == 200
    response = client.post(URL, json=body(), headers=headers)
    assert response.status_code == 429
    assert error_of(response)["type"] == "rate_limit_error"
    assert response.headers["retry-after"]


def test_a_deadline(client: TestClient, engine: FakeEngine) -> None:
    engine.script = lambda _: [600.0]
    response = client.post(URL, json=body(), headers={"X-Request-Timeout": "0.05"})
    assert response.status_code == 504
    assert error_of(response)["type"] == "timeout_error"


@pytest.mark.parametrize(
    ("error", "status", "type"),
    [
        (EngineDeadError("x"), 503, "overloaded_error"),
        (RuntimeError("secret"), 500, "api_error"),
    ],
)
def test_a_failing_engine(
    client: TestClient, engine: FakeEngine, error: Exception, status: int, type: str
) -> None:
    engine.script = lambda _: [error]
    for stream in (False, True):
        response = post(client, stream=stream)
        assert response.status_code == status
        assert error_of(response)["type"] == type
        assert "secret" not in response.text


def test_an_error_in_a_stream_is_an_event(client: TestClient, engine: FakeEngine) -> None:
    def fail(request: Any) -> list[Any]:
        first = text_script("Hello")(request)[0]
        return [first, output(request, error="broken")]

    engine.script = fail
    response = post(client, stream=True)
    *_, last, rest = response.text.split("\n\n")
    assert rest == ""
    request_id = response.headers["request-id"]
    assert last == (
        'event: error\ndata: {"type":"error","error":{"type":"api_error",'
        '"message":"The server failed to process the request.",'
        '"details":{"error_code":"server_error"}},'
        f'"request_id":"{request_id}"}}'
    )
