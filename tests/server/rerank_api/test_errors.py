"""What `/v1/rerank` and `/v1/score` refuse, and what a reranker refuses elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.rerank_api import pairs
from stonechat_server.rerank_api.fields import RERANK_FIELDS, SCORE_FIELDS
from stonechat_server.rerank_api.request import RerankRequest, ScoreRequest
from stonechat_server.schema.base import WireModel
from stonechat_server.schema.fields import FieldNote
from tests.models.tiny_embedders import save_embedder
from tests.server.bodies import error_of
from tests.server.conftest import ClientFactory
from tests.server.rerank_api.conftest import URL, Serve

LONG = "the cat sat on the mat " * 20
GOOD: dict[str, Any] = {"query": "the cat", "documents": ["a dog", "x"]}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"query": None}, "query", "missing_required_parameter"),
        ({"query": ""}, "query", "invalid_value"),
        ({"query": 3}, "query", "invalid_type"),
        ({"query": ["a"]}, "query", "invalid_type"),
        ({"documents": None}, "documents", "missing_required_parameter"),
        ({"documents": []}, "documents", "invalid_value"),
        ({"documents": "a"}, "documents", "invalid_type"),
        ({"documents": ["a", 3]}, "documents[1]", "invalid_type"),
        ({"documents": ["a"] * 2049}, "documents", "invalid_value"),
        ({"documents": ["a", {"image": "x"}]}, "documents[1].text", "missing_required_parameter"),
        ({"documents": [{"text": 3}]}, "documents[0].text", "invalid_type"),
        ({"documents": ["a", LONG]}, "documents[1]", "context_length_exceeded"),
        ({"documents": [{"text": LONG}]}, "documents[0]", "context_length_exceeded"),
        ({"query": LONG}, "documents[0]", "context_length_exceeded"),
        ({"truncation": False, "query": LONG}, "documents[0]", "context_length_exceeded"),
        ({"top_n": -1}, "top_n", "invalid_value"),
        ({"top_n": "2"}, "top_n", "invalid_type"),
        ({"return_documents": "yes"}, "return_documents", "invalid_type"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc", "invalid_value"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "invalid_value"),
        ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens", "invalid_value"),
        ({"rank_fields": ["title"]}, "rank_fields", "unsupported_parameter"),
        ({"max_chunks_per_doc": 10}, "max_chunks_per_doc", "unsupported_parameter"),
        ({"instruction": "find"}, "instruction", "unsupported_parameter"),
    ],
)
def test_bad_requests(fields: dict[str, Any], param: str, code: str, client: TestClient) -> None:
    response = client.post(URL, json=GOOD | fields)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert (error["param"], error["code"]) == (param, code)


def test_the_tokens_of_all_pairs_are_bounded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = client.post(URL, json=GOOD).json()["usage"]["total_tokens"]
    monkeypatch.setattr(pairs, "MAX_TOKENS", total)
    assert client.post(URL, json=GOOD).status_code == 200
    monkeypatch.setattr(pairs, "MAX_TOKENS", total - 1)
    error = error_of(client.post(URL, json=GOOD))
    assert (error["param"], error["code"]) == ("documents[1]", "invalid_value")
    assert f"more than {total - 1} tokens together" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ({"text_1": ["a", "b"], "text_2": "c"}, "text_1"),
        ({"text_1": "a", "text_2": []}, "text_2"),
        ({"text_1": "a", "text_2": LONG}, "text_2"),
        ({"text_1": "a", "text_2": ["a", LONG]}, "text_2[1]"),
        ({"text_1": {"content": []}, "text_2": "a"}, "text_1"),
    ],
)
def test_bad_pairs(fields: dict[str, Any], param: str, client: TestClient) -> None:
    response = client.post("/v1/score", json=fields)
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param


def test_both_numbers_are_told(client: TestClient) -> None:
    message = error_of(client.post(URL, json=GOOD | {"documents": [LONG]}))["message"]
    assert "has 125 tokens" in message
    assert "at most 64" in message


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/completions", {"prompt": "hi"}, "model_not_generative"),
        ("/v1/responses", {"input": "hi"}, "model_not_generative"),
        ("/v1/embeddings", {"input": "hi"}, "model_not_embedding"),
    ],
)
def test_a_reranker_names_its_endpoint(
    path: str, body: dict[str, Any], code: str, client: TestClient
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == ("model", code)
    assert error["message"].startswith("This model scores documents; it ")
    assert error["message"].endswith("Use POST /v1/rerank.")


@pytest.mark.parametrize("path", [URL, "/v1/score"])
def test_other_models_name_theirs(
    path: str, serve: Serve, new_client: ClientFactory, tmp_path: Path
) -> None:
    body = GOOD if path == URL else {"text_1": "a", "text_2": "b"}
    embedder = serve(save_embedder(tmp_path / "embedder"))
    for client, endpoint in ((embedder, "/v1/embeddings"), (new_client(), "/v1/chat/completions")):
        response = client.post(path, json=body)
        assert response.status_code == 400
        error = error_of(response)
        assert (error["param"], error["code"]) == ("model", "model_not_reranker")
        assert error["message"].endswith(f"it is no reranker. Use POST {endpoint}.")


@pytest.mark.parametrize(
    ("table", "wire"), [(RERANK_FIELDS, RerankRequest), (SCORE_FIELDS, ScoreRequest)]
)
def test_the_tables_have_every_field(table: Mapping[str, FieldNote], wire: type[WireModel]) -> None:
    assert set(table) == set(wire.model_fields)


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
        [{}, "a"],
    ]
    for name in RerankRequest.model_fields:
        for value in values:
            response = client.post(URL, json=GOOD | {name: value})
            assert response.status_code in (200, 400, 404), (name, value, response.text)
