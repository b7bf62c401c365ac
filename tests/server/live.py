"""A real server with a scripted engine, in a thread, on a port of 127.0.0.1."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

from stonechat_server.app import create_app
from stonechat_server.observability.ledger import Ledger
from stonechat_server.serving.http_server import DrainingServer
from stonechat_server.serving.services import Services
from stonechat_server.settings import Settings
from stonechat_server.storage.storage import Storage
from tests.server.fake_engine import FakeEngine


@dataclass
class Live:
    """A running server at `url`. `signal` does what SIGTERM does."""

    app: FastAPI
    server: DrainingServer
    port: int
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def services(self) -> Services:
        services: Services = self.app.state.server
        return services

    def signal(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)


@contextmanager
def live_server(
    engine: FakeEngine,
    ledger: Ledger | None = None,
    storage: Storage | None = None,
    **settings: Any,
) -> Iterator[Live]:
    """Run a server during the `with` block."""
    app = create_app(Settings(**settings), engine, ledger=ledger, storage=storage)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=60, lifespan="on"
    )
    server = DrainingServer(config, app.state.server.lifecycle)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Live(app, server, listener.getsockname()[1], thread)
    finally:
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
        thread.join(60)
        listener.close()
        assert not thread.is_alive()


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.005)
