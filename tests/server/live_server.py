"""A real server with a scripted engine, on a real socket."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from stonechat_server.app import create_app
from stonechat_server.catalog.catalog import Catalog
from stonechat_server.settings import Settings
from tests.server.fake_engine import FakeEngine


@dataclass
class LiveServer:
    url: str
    """Ends with a slash. The API is at `v1` below it."""
    engine: FakeEngine


@contextmanager
def live_server(settings: Settings, catalog: Catalog | None = None) -> Iterator[LiveServer]:
    """Without a catalog, `engine` is the only one."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        engine = FakeEngine()
        config = uvicorn.Config(create_app(settings, catalog or engine), log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield LiveServer(f"http://127.0.0.1:{listener.getsockname()[1]}/", engine)
        server.should_exit = True
        thread.join(10)
