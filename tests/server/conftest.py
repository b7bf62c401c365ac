"""A server with a scripted engine, called in the same process."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.server.fake_engine import FakeEngine

ClientFactory = Callable[..., TestClient]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("STONECHAT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def new_client(engine: FakeEngine) -> Iterator[ClientFactory]:
    """`new_client(**settings)` starts a server and returns its client."""
    clients = []

    def create(**settings: Any) -> TestClient:
        app = create_app(Settings(**settings), engine)
        client = TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        return client

    yield create
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(new_client: ClientFactory) -> TestClient:
    return new_client()
