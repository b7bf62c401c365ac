"""Runs a real server on the default model, for tests over HTTP."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest
import uvicorn

from stonechat_models import AsyncEngine
from stonechat_server.app import create_app
from stonechat_server.settings import Settings

KV_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class LiveServer:
    """A server in a thread of this process."""

    url: str
    engine: AsyncEngine
    model: str

    def wait_until_idle(self, seconds: float = 60.0) -> None:
        """Wait until no request holds a sequence or a block. Fails after `seconds`."""
        end = time.monotonic() + seconds
        while True:
            stats = self.engine.stats()
            counts = (stats.num_running, stats.num_waiting, stats.num_used_blocks)
            if counts == (0, 0, 0):
                return
            assert time.monotonic() < end, f"running, waiting, blocks still {counts}"
            time.sleep(0.01)


@pytest.fixture(scope="session")
def server(say: Callable[[str], None]) -> Iterator[LiveServer]:
    with live_server(say) as live:
        yield live


@contextmanager
def live_server(say: Callable[[str], None], **changes: Any) -> Iterator[LiveServer]:
    """Run a server on the default model. `changes` override the default settings."""
    defaults = {
        "kv_cache_size": KV_CACHE_BYTES,
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "log_level": "warning",
        "ledger": "off",
    }
    settings = Settings(**{**defaults, **changes})
    engine = AsyncEngine.from_config(settings.engine_config(), say)
    app = create_app(settings, engine)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        runner = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not runner.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = listener.getsockname()[1]
        yield LiveServer(f"http://127.0.0.1:{port}", engine, engine.model.name)
        runner.should_exit = True
        thread.join(30)


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client
