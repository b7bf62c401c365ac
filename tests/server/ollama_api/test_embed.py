"""`/api/embed` and `/api/embeddings` on a tiny BERT: the numbers are those of `/v1/embeddings`."""

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.server.embeddings_api.conftest import Serve, embedder, records, serve  # noqa: F401
from tests.server.ollama_api.conftest import ask, error

TEXTS = ["the cat sat on the mat", "a dog runs", "x"]
LONG = "the cat sat on the mat " * 20


@pytest.fixture
def client(serve: Serve) -> TestClient:  # noqa: F811
    return serve()


def expected(client: TestClient, *texts: str, **fields: object) -> np.ndarray:
    answer = client.post("/v1/embeddings", json={"input": texts, **fields}).json()
    return np.array([item["embedding"] for item in answer["data"]])


def test_texts_in_their_order(client: TestClient) -> None:
    answer = ask(client, "/api/embed", model="tiny-bert:latest", input=TEXTS)
    assert answer.keys() == {"model", "embeddings"} | {
        *("total_duration", "load_duration", "prompt_eval_count"),
    }
    assert answer["model"] == "tiny-bert:latest"
    assert answer["prompt_eval_count"] == 8 + 5 + 3
    assert 0 < answer["load_duration"] < answer["total_duration"] < 60 * 10**9
    np.testing.assert_allclose(answer["embeddings"], expected(client, *TEXTS), atol=1e-6)
    one = ask(client, "/api/embed", model="tiny-bert", input=TEXTS[0])
    np.testing.assert_allclose(one["embeddings"], answer["embeddings"][:1], atol=1e-6)


def test_one_text_in_the_older_form(client: TestClient) -> None:
    answer = ask(client, "/api/embeddings", model="tiny-bert", prompt="a dog runs")
    assert answer.keys() == {"embedding"}
    np.testing.assert_allclose(answer["embedding"], expected(client, "a dog runs")[0], atol=1e-6)


def test_dimensions(client: TestClient) -> None:
    vectors = ask(client, "/api/embed", model="tiny-bert", input=TEXTS, dimensions=8)["embeddings"]
    np.testing.assert_allclose(vectors, expected(client, *TEXTS, dimensions=8), atol=1e-6)
    all_of_it = ask(client, "/api/embed", model="tiny-bert", input="x", dimensions=0)
    assert len(all_of_it["embeddings"][0]) == 32
    assert "dimensions" in error(client, "/api/embed", input="x", dimensions=999)


def test_long_texts_are_cut(client: TestClient) -> None:
    answer = ask(client, "/api/embed", model="tiny-bert", input=LONG)
    wanted = expected(client, LONG, truncate_prompt_tokens=-1)
    np.testing.assert_allclose(answer["embeddings"], wanted, atol=1e-6)
    text = error(client, "/api/embed", input=["a", LONG], truncate=False)
    assert "'input[1]'" in text
    assert "or set truncate." in text
    assert "'prompt'" in error(client, "/api/embeddings", prompt=LONG)


@pytest.mark.parametrize("value", ["", None])
def test_without_a_text_the_model_is_loaded(client: TestClient, value: str | None) -> None:
    answer = ask(client, "/api/embed", model="tiny-bert", input=value)
    assert answer == {"model": "tiny-bert", "embeddings": []}
    assert ask(client, "/api/embeddings", model="tiny-bert", prompt=value) == {"embedding": []}


def test_it_is_an_embedder(client: TestClient) -> None:
    shown = client.post("/api/show", json={"model": "tiny-bert"}).json()
    assert shown["capabilities"] == ["embedding"]
    assert shown["model_info"]["bert.embedding_length"] == 32
    assert "does not generate" in error(client, messages=[{"role": "user", "content": "x"}])


def test_options_have_no_effect(client: TestClient) -> None:
    body = {"input": "x", "options": {"num_ctx": 5, "temperature": 0}}
    response = client.post("/api/embed", json=body)
    assert response.status_code == 200
    assert response.headers["x-ignored-params"] == "options"


def test_texts_without_tokens_are_refused(client: TestClient) -> None:
    assert "input" in error(client, "/api/embed", input=[5])
