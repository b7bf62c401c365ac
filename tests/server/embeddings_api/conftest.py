"""A server on a tiny embedding model, called in the same process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from stonechat_models import AsyncEngine
from stonechat_server.admission.records import FinishedRequest
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.models.tiny_embedders import save_embedder

URL = "/v1/embeddings"
PROMPTS = {"query": "query: ", "passage": "passage: ", "plain": ""}

Serve = Callable[..., TestClient]
Post = Callable[..., Response]


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with prompts, for texts of up to 48 tokens."""
    folder = tmp_path_factory.mktemp("embedders") / "tiny-bert"
    return save_embedder(folder, "bert", settings={"prompts": PROMPTS})


@pytest.fixture
def records() -> list[FinishedRequest]:
    """What the server records."""
    return []


@pytest.fixture
def serve(embedder: Path, records: list[FinishedRequest]) -> Iterator[Serve]:
    """`serve(folder, **settings)` starts a server, by default on `embedder`."""
    clients = []

    def start(folder: Path = embedder, **changes: Any) -> TestClient:
        settings = Settings(model=str(folder), device="cpu", threads=1, ledger="off", **changes)
        engine = AsyncEngine.from_config(settings.engine_config())
        app = create_app(settings, engine, sinks=[records.append])
        client = TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve: Serve) -> TestClient:
    return serve()


@pytest.fixture
def post(client: TestClient) -> Post:
    def send(input: Any = "the cat", **fields: Any) -> Response:
        return client.post(URL, json={"input": input, **fields})

    return send
