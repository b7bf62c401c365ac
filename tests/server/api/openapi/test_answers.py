"""Compares the answers and events of every endpoint with what the OpenAPI document says of it."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.server.api.openapi.test_document import Document, schema_problems
from tests.server.bodies import URL
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import ByteTokenizer, FakeEngine
from tests.server.messages_api.scripts import TEMPLATE, call, text_script

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "weather", "parameters": SCHEMA}
MESSAGES = [{"role": "user", "content": "hi"}]
REQUESTS: dict[str, dict[str, Any]] = {
    URL: {
        "messages": MESSAGES,
        "tools": [{"type": "function", "function": FUNCTION}],
        "stream_options": {"include_usage": True},
        "prompt_logprobs": 1,
        "return_token_ids": True,
    },
    "/v1/completions": {
        "prompt": ["hi", "there"],
        "echo": True,
        "logprobs": 2,
        "prompt_logprobs": 1,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
    },
    "/v1/responses": {
        "input": "hi",
        "tools": [{"type": "function", **FUNCTION}],
        "include": ["reasoning.encrypted_content"],
        "metadata": {"a": "b"},
    },
    "/v1/messages": {
        "max_tokens": 50,
        "messages": MESSAGES,
        "tools": [{"name": "weather", "input_schema": SCHEMA}],
    },
}
"""A request that makes the answer as rich as it gets, by path."""
ERRORS = [*((path, {"temperature": 9}) for path in REQUESTS), ("/v1/embeddings", {"input": "x"})]
WITHOUT_STREAM: dict[str, dict[str, Any]] = {
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/v1/responses/input_tokens": {"input": "hi"},
    "/tokenize": {"prompt": "hi", "with_pieces": True, "return_token_strs": True},
    "/detokenize": {"tokens": [104, 105]},
    "/v1/chat/completions/render": {"messages": MESSAGES},
}


@pytest.fixture
def engine() -> FakeEngine:
    text = "<think>Well.</think>Hello.\n" + call("weather", city="Oslo")
    return FakeEngine(tokenizer=ByteTokenizer(chat_template=TEMPLATE), script=text_script(text))


def content(document: Document, path: str, status: int = 200, method: str = "post") -> Any:
    return document["paths"][path][method]["responses"][str(status)]["content"]


@pytest.mark.parametrize("path", REQUESTS)
def test_a_plain_answer_matches(client: TestClient, document: Document, path: str) -> None:
    request = {key: value for key, value in REQUESTS[path].items() if key != "stream_options"}
    response = client.post(path, json=request)
    assert response.status_code == 200, response.text
    assert "x-ignored-params" not in response.headers
    schema = content(document, path)["application/json"]["schema"]
    assert schema_problems(document, schema, response.json()) == []
    assert schema_problems(document, schema, {}) != []


@pytest.mark.parametrize("path", REQUESTS)
def test_the_events_match(client: TestClient, document: Document, path: str) -> None:
    response = client.post(path, json=REQUESTS[path] | {"stream": True})
    assert response.status_code == 200, response.text
    lines = response.text.splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    events = [json.loads(text) for text in data if text != "[DONE]"]
    description = content(document, path)
    schema = description["text/event-stream"]["x-event-schema"]
    assert len(events) > 5
    for event in events:
        assert schema_problems(document, schema, event) == [], event
    assert schema_problems(document, schema, {"type": "unknown"}) != []
    has_end = "[DONE]" in document["paths"][path]["post"]["responses"]["200"]["description"]
    assert has_end is (data[-1] == "[DONE]")


@pytest.mark.parametrize("path", WITHOUT_STREAM)
def test_an_answer_without_a_stream_matches(
    client: TestClient, document: Document, path: str
) -> None:
    response = client.post(path, json=WITHOUT_STREAM[path])
    assert response.status_code == 200, response.text
    schema = content(document, path)["application/json"]["schema"]
    assert schema_problems(document, schema, response.json()) == []


@pytest.mark.parametrize("headers", [{}, {"anthropic-version": "2023-06-01"}])
@pytest.mark.parametrize("path", ["/v1/models", "/tokenizer_info", "/version"])
def test_the_answer_to_a_get_matches(
    client: TestClient, document: Document, path: str, headers: dict[str, str]
) -> None:
    schema = content(document, path, method="get")["application/json"]["schema"]
    assert schema_problems(document, schema, client.get(path, headers=headers).json()) == []


@pytest.mark.parametrize(
    ("headers", "has_id"), [({}, False), ({"anthropic-version": "2023-06-01"}, True)]
)
def test_the_error_of_a_get_matches(
    client: TestClient, document: Document, headers: dict[str, str], has_id: bool
) -> None:
    response = client.get("/v1/models/nothing", headers=headers)
    schema = content(document, "/v1/models/{model}", 404, "get")["application/json"]["schema"]
    assert schema_problems(document, schema, response.json()) == []
    assert ("request_id" in response.json()) is has_id
    assert schema_problems(document, schema, {}) != []


@pytest.mark.parametrize(("path", "fields"), ERRORS)
def test_an_error_matches(
    client: TestClient, document: Document, path: str, fields: dict[str, Any]
) -> None:
    response = client.post(path, json=REQUESTS.get(path, {}) | fields)
    assert response.status_code == 400
    schema = content(document, path, 400)["application/json"]["schema"]
    assert schema_problems(document, schema, response.json()) == []


@pytest.mark.parametrize("path", REQUESTS)
def test_the_request_matches(client: TestClient, document: Document, path: str) -> None:
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema_problems(document, body, REQUESTS[path]) == []
    assert schema_problems(document, body, REQUESTS[path] | {"temperature": 9}) != []
    assert schema_problems(document, body, {"stream": 5}) != []


def test_every_route_that_takes_a_body_describes_it(document: Document) -> None:
    for path, operations in document["paths"].items():
        if "post" in operations and not path.endswith("/cancel"):
            assert "requestBody" in operations["post"], path
            assert {"400", "401", "429"} <= operations["post"]["responses"].keys(), path


def test_the_names_of_types_are_short_and_unambiguous(document: Document) -> None:
    schemas = document["components"]["schemas"]
    assert all(name.isalnum() for name in schemas)
    assert schemas["ChatUsage"] != schemas["AnthropicUsage"] != schemas["ResponseUsage"]


def test_an_answer_to_a_request_without_a_key_matches(
    new_client: ClientFactory,
) -> None:
    client = new_client(api_key=["k"])
    document = client.get("/openapi.json").json()
    for path, request in REQUESTS.items():
        response = client.post(path, json=request)
        assert response.status_code == 401
        schema = content(document, path, 401)["application/json"]["schema"]
        assert schema_problems(document, schema, response.json()) == [], path
