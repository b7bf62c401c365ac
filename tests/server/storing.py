"""A server that keeps files in a folder of the test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from stonechat_server.storage.storage import Storage, open_storage
from tests.server.fake_engine import FakeEngine

NewServer = Callable[..., TestClient]


@pytest.fixture
def new_server(tmp_path: Path, engine: FakeEngine) -> Iterator[NewServer]:
    """`new_server(**settings)` starts a server on the folder `files` and returns its client."""
    with ExitStack() as stack:

        def start(**settings: Any) -> TestClient:
            return stack.enter_context(storing_client(tmp_path / "files", engine, **settings))

        yield start


@pytest.fixture
def server(new_server: NewServer) -> TestClient:
    return new_server()


def storing_client(folder: Path, engine: FakeEngine, **settings: Any) -> TestClient:
    """A server with its files and their database in `folder`. It starts with the context."""
    app = storing_app(folder, engine, **settings)
    return TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False)


def storing_app(folder: Path, engine: FakeEngine, **settings: Any) -> FastAPI:
    values: dict[str, Any] = {"files_dir": folder, "ledger": "off"} | settings
    chosen = Settings(**values)
    return create_app(chosen, engine, storage=open_storage(chosen))


def storage_of(client: TestClient) -> Storage:
    storage: Storage = client.app.state.storage  # type: ignore[attr-defined]
    return storage


def upload(client: TestClient, content: bytes = b"{}\n", **fields: Any) -> Any:
    """The file object of an upload."""
    data = {"purpose": "batch"} | fields
    answer = client.post("/v1/files", data=data, files={"file": ("lines.jsonl", content)})
    assert answer.status_code == 200, answer.text
    return answer.json()
