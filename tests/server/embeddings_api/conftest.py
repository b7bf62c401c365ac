"""A server on a tiny embedding model, called in the same process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from stonechat_server.admission.records import FinishedRequest
from tests.models.tiny_embedders import save_embedder
from tests.server.real_models import Serve, servers

URL = "/v1/embeddings"
PROMPTS = {"query": "query: ", "passage": "passage: ", "plain": ""}

Post = Callable[..., Response]


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with prompts, for texts of up to 48 tokens."""
    folder = tmp_path_factory.mktemp("embedders") / "tiny-bert"
    return save_embedder(folder, "bert", settings={"prompts": PROMPTS})


@pytest.fixture
def records() -> list[FinishedRequest]:
    """What the servers of `serve` record."""
    return []


@pytest.fixture
def serve(embedder: Path, records: list[FinishedRequest]) -> Iterator[Serve]:
    """Starts servers, by default on `embedder`."""
    with servers(embedder, records) as start:
        yield start


@pytest.fixture(scope="module")
def client(embedder: Path) -> Iterator[TestClient]:
    with servers(embedder, []) as start:
        yield start()


@pytest.fixture
def post(client: TestClient) -> Post:
    def send(input: Any = "the cat", **fields: Any) -> Response:
        return client.post(URL, json={"input": input, **fields})

    return send
