"""What `/v1/embeddings` refuses, and what an embedding model refuses elsewhere."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.embeddings_api.fields import EMBEDDING_FIELDS
from stonechat_server.embeddings_api.request import EmbeddingRequest
from stonechat_server.schema.fields import FieldStatus
from tests.models.tiny_embedders import HIDDEN_SIZE, VOCABULARY
from tests.server.bodies import error_of
from tests.server.conftest import ClientFactory
from tests.server.embeddings_api.conftest import URL, Post, Serve

LONG = "the cat sat on the mat " * 10


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input[1]", "invalid_value"),
        ({"input": [[5], []]}, "input[1]", "invalid_value"),
        ({"input": ["a", 5]}, "input[1]", "invalid_type"),
        ({"input": 3}, "input", "invalid_type"),
        ({"input": {"text": "a"}}, "input", "invalid_type"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"input": [5, -1]}, "input[1]", "invalid_value"),
        ({"input": [[5], [5, len(VOCABULARY)]]}, "input[1][1]", "invalid_value"),
        ({"input": [5, 10**30]}, "input[1]", "invalid_value"),
        ({"input": LONG}, "input", "context_length_exceeded"),
        ({"input": ["a", LONG]}, "input[1]", "context_length_exceeded"),
        ({"input": [5] * 49}, "input", "context_length_exceeded"),
        ({"input": "a", "dimensions": 0}, "dimensions", "invalid_value"),
        ({"input": "a", "dimensions": -3}, "dimensions", "invalid_value"),
        ({"input": "a", "dimensions": HIDDEN_SIZE + 1}, "dimensions", "invalid_value"),
        ({"input": "a", "dimensions": "8"}, "dimensions", "invalid_type"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "invalid_value"),
        ({"input": "a", "prompt_name": "nope"}, "prompt_name", "invalid_value"),
        ({"input": "a", "input_type": "classification"}, "input_type", "invalid_value"),
        (
            {"input": "a", "input_type": "query", "prompt_name": "query"},
            "input_type",
            "invalid_value",
        ),
        ({"input": [5], "prompt_name": "query"}, "input", "invalid_value"),
        ({"input": " ", "add_special_tokens": False}, "input", "invalid_value"),
        ({"input": "a", "messages": [{"role": "user"}]}, "messages", "unsupported_parameter"),
        ({"input": "a", "instruction": "find"}, "instruction", "unsupported_parameter"),
    ],
)
def test_bad_requests(fields: dict[str, Any], param: str, code: str, client: TestClient) -> None:
    response = client.post(URL, json=fields)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert (error["param"], error["code"]) == (param, code)


def test_a_text_that_is_too_long_is_told_in_numbers(post: Post) -> None:
    error = error_of(post(LONG))
    assert "has 62 tokens, and this model takes at most 48" in error["message"]
    assert "truncate_prompt_tokens" in error["message"]


def test_another_model_is_not_found(post: Post) -> None:
    response = post("a", model="text-embedding-3-small")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"input": "\xff"}', b'"a"'])
def test_bodies_that_are_no_request(body: bytes, client: TestClient) -> None:
    response = client.post(URL, content=body)
    assert response.status_code == 400
    error_of(response)


def test_unknown_fields_are_named_or_refused(serve: Serve) -> None:
    body = {"input": "a", "colour": 1, "user": "u"}
    assert serve().post(URL, json=body).headers["x-ignored-params"] == "colour"
    error = error_of(serve(strict_params=True).post(URL, json=body))
    assert (error["param"], error["code"]) == ("colour", "unknown_parameter")


def test_a_key_is_needed_where_there_is_one(serve: Serve) -> None:
    client = serve(api_key=["secret"])
    assert client.post(URL, json={"input": "a"}).status_code == 401
    headers = {"Authorization": "Bearer secret"}
    assert client.post(URL, json={"input": "a"}, headers=headers).status_code == 200


def test_a_body_that_is_too_large(serve: Serve) -> None:
    assert serve(max_body_size=100).post(URL, json={"input": "a" * 100}).status_code == 413


def test_a_draining_server_refuses(serve: Serve) -> None:
    client = serve()
    client.app.state.server.lifecycle.begin_drain()  # type: ignore[attr-defined]
    assert client.post(URL, json={"input": "a"}).status_code == 503


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "stream": True}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi"}),
    ],
)
def test_an_embedding_model_does_not_generate(
    path: str, body: dict[str, Any], client: TestClient
) -> None:
    response = client.post(path, json={"model": "tiny-bert", **body})
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == ("model", "model_not_generative")
    assert error["message"].startswith("This model makes embeddings; it does not generate.")


def test_nor_in_the_shape_of_messages(client: TestClient) -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "tiny-bert", "max_tokens": 5, "messages": messages}
    response = client.post("/v1/messages", json=body)
    assert response.status_code == 400
    assert "it does not generate" in response.json()["error"]["message"]


def test_a_model_that_generates_names_the_flag(new_client: ClientFactory) -> None:
    response = new_client().post(URL, json={"input": "a"})
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == ("model", "model_not_embedding")
    assert "--embeddings" in error["message"]


def test_the_table_has_every_field_of_the_schema() -> None:
    assert set(EMBEDDING_FIELDS) == set(EmbeddingRequest.model_fields)
    rejected = {n for n, note in EMBEDDING_FIELDS.items() if note.status is FieldStatus.REJECTED}
    assert rejected == {"messages", "instruction"}


def test_random_bodies_never_break_the_server(client: TestClient) -> None:
    values: list[Any] = [
        None,
        True,
        0,
        -1,
        3,
        1e300,
        "",
        "a",
        [],
        [None],
        [""],
        {},
        [[]],
        [[5], "a"],
    ]
    for name in EmbeddingRequest.model_fields:
        for value in values:
            body = {"input": "the cat", name: value}
            response = client.post(URL, json=body)
            assert response.status_code in (200, 400, 404), (body, response.text)
