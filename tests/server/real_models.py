"""Servers on small real models, called in the same process."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from stonechat_models import AsyncEngine
from stonechat_server.admission.records import FinishedRequest
from stonechat_server.app import create_app
from stonechat_server.settings import Settings

Serve = Callable[..., TestClient]
"""`serve(folder, **settings)` starts a server, and returns its client."""


@contextmanager
def servers(default: Path, records: list[FinishedRequest]) -> Iterator[Serve]:
    """Servers that add what they record to `records`. The folder is `default` if none is named."""
    with ExitStack() as started:

        def serve(folder: Path = default, **changes: Any) -> TestClient:
            settings = Settings(model=str(folder), device="cpu", threads=1, ledger="off", **changes)
            engine = AsyncEngine.from_config(settings.engine_config())
            app = create_app(settings, engine, sinks=[records.append])
            client = TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False)
            return started.enter_context(client)

        yield serve
