"""Compares the OpenAPI document with real requests and answers."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.server.bodies import URL, ask, body, post, stream
from tests.server.conftest import ClientFactory

Document = dict[str, Any]


@pytest.fixture
def document(client: TestClient) -> Document:
    answer: Document = client.get("/openapi.json").json()
    return answer


def problems(document: Document, name: str, value: object) -> list[str]:
    """The errors of `value` against the schema `name`."""
    resource = Resource.from_contents(
        document | {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    )
    registry: Registry[Any] = Registry().with_resource("urn:api", resource)
    schema = {"$ref": f"urn:api#/components/schemas/{name}"}
    validator = Draft202012Validator(schema, registry=registry)
    return [error.message for error in validator.iter_errors(value)]


def test_every_reference_resolves(document: Document) -> None:
    def references(value: object) -> list[str]:
        if isinstance(value, dict):
            own_references = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own_references + [ref for item in value.values() for ref in references(item)]
        return (
            [ref for item in value for ref in references(item)] if isinstance(value, list) else []
        )

    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= names


def test_the_routes_are_there(document: Document) -> None:
    assert {URL, "/v1/models", "/v1/models/{model}", "/health", "/ready"} <= set(document["paths"])
    assert "422" not in document["paths"]["/v1/models/{model}"]["get"]["responses"]


def test_a_key_is_required_only_where_there_are_keys(
    document: Document, new_client: ClientFactory
) -> None:
    assert "security" not in str(document)
    with_keys = new_client(api_key=["secret"]).get("/openapi.json").json()
    schemes = with_keys["components"]["securitySchemes"]
    assert schemes["bearer"] == {"type": "http", "scheme": "bearer"}
    assert schemes["header"] == {"type": "apiKey", "in": "header", "name": "X-Api-Key"}
    for path, operations in with_keys["paths"].items():
        for operation in operations.values():
            needed = [{"bearer": []}, {"header": []}] if path.startswith("/v1/") else None
            assert operation.get("security") == needed, path


def test_answers_match_the_document(client: TestClient, document: Document) -> None:
    logprobs = {"logprobs": True, "n": 2, "metadata": {"a": "b"}}
    assert problems(document, "ChatCompletion", ask(client, **logprobs)) == []
    for chunk in stream(client, stream_options={"include_usage": True}):
        assert problems(document, "ChatCompletionChunk", chunk) == []
    assert problems(document, "ModelList", client.get("/v1/models").json()) == []
    assert problems(document, "ErrorResponse", post(client, n=0).json()) == []


@pytest.mark.parametrize(
    ("fields", "is_valid"),
    [
        ({"temperature": 1, "stop": "x"}, True),
        ({"stop": ["x"], "response_format": {"type": "text"}}, True),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, True),
        ({"temperature": 3}, False),
        ({"messages": []}, False),
        ({"messages": [{"role": "robot", "content": "x"}]}, False),
        ({"n": "1"}, False),
    ],
)
def test_the_server_accepts_what_the_document_allows(
    client: TestClient, document: Document, fields: dict[str, Any], is_valid: bool
) -> None:
    request = body(**fields)
    assert (problems(document, "ChatCompletionRequest", request) == []) is is_valid
    assert (client.post(URL, json=request).status_code == 200) is is_valid
