"""Compares the OpenAPI document with real requests and answers."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator

from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.server.bodies import URL, ask, body, post, stream
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import text_script
from tests.server.fake_media import seeing_engine

Document = dict[str, Any]
ELSEWHERE = (
    *("/v1/audio/", "/v1/embeddings", "/api/embed", "/v1/rerank", "/v1/score"),
    *("/v1/files", "/v1/batches"),
)
"""What a server with the scripted engine and no folder for files does not do."""


def problems(document: Document, name: str, value: object) -> list[str]:
    """The errors of `value` against the schema `name`."""
    return schema_problems(document, {"$ref": f"#/components/schemas/{name}"}, value)


def schema_problems(document: Document, schema: Document, value: object) -> list[str]:
    """The errors of `value` against a schema whose references lead into the document."""
    validator = Draft202012Validator({"components": document["components"]} | schema)
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


def test_the_examples_of_bodies_are_accepted(client: TestClient, document: Document) -> None:
    for path, operations in document["paths"].items():
        if "post" not in operations or path.startswith(ELSEWHERE):
            continue
        if path.startswith(("/v1/models/", "/api/show", "/api/pull")):  # these name a model
            continue
        if path == "/infill":  # needs a model for code
            continue
        media = operations["post"]["requestBody"]["content"]["application/json"]
        text, *images = [each["value"] for each in media["examples"].values()]
        for example in (text, *images):
            assert schema_problems(document, media["schema"], example) == []
        response = client.post(path, json=text)
        assert response.status_code == 200, response.text


def test_the_examples_with_images_are_accepted(document: Document) -> None:
    engine = seeing_engine(text_script("Red and blue."))
    with TestClient(create_app(Settings(), engine), "http://localhost") as client:
        for path in (URL, "/v1/responses", "/v1/messages"):
            content = document["paths"][path]["post"]["requestBody"]["content"]
            _, image = content["application/json"]["examples"].values()
            response = client.post(path, json=image["value"])
            assert response.status_code == 200, response.text
            assert len(engine.requests[-1].media) == 1


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
            is_open = path in ("/health", "/ready", "/metrics", "/version")
            needed = None if is_open else [{"bearer": []}, {"header": []}]
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


def test_every_operation_has_a_tag_a_summary_and_an_id_of_its_own(document: Document) -> None:
    operations = [
        operation for methods in document["paths"].values() for operation in methods.values()
    ]
    tags = [tag["name"] for tag in document["tags"]]
    assert {tag for operation in operations for tag in operation["tags"]} <= set(tags)
    assert all(operation["tags"] and operation["summary"] for operation in operations)
    assert all(operation["description"] for operation in operations)
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    assert all(name.isalnum() for name in names)
