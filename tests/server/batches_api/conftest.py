"""A server that keeps files in a folder of the test."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.server.fake_engine import FakeEngine
from tests.server.storing import NewServer, storing_client


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
