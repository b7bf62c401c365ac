"""A server that keeps files in a folder of the test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
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
            values = {"files_dir": tmp_path / "files", "ledger": "off"} | settings
            chosen = Settings(**values)
            app = create_app(chosen, engine, storage=open_storage(chosen))
            client = TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False)
            return stack.enter_context(client)

        yield start


@pytest.fixture
def server(new_server: NewServer) -> TestClient:
    return new_server()


def storage_of(client: TestClient) -> Storage:
    storage: Storage = client.app.state.storage  # type: ignore[attr-defined]
    return storage


def upload(client: TestClient, content: bytes = b"{}\n", **fields: Any) -> Any:
    """The file object of an upload."""
    data = {"purpose": "batch"} | fields
    answer = client.post("/v1/files", data=data, files={"file": ("lines.jsonl", content)})
    assert answer.status_code == 200, answer.text
    return answer.json()
