"""A private server in this process, on a free port of this machine and behind a random key.

The terminal chat uses it like any other server, so templates, fields and limits are the same.
"""

import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from stonechat_models import EngineError
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.settings import Settings

START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class OwnServer:
    """The API root of a private server, and its key."""

    url: str
    key: str


@contextmanager
def own_server(engine: EngineLike, settings: Settings) -> Iterator[OwnServer]:
    """Serve `engine` until the context ends. Raises `EngineError` if it does not start."""
    from stonechat_server.app import create_app

    key = "sk-" + secrets.token_urlsafe(24)  # "sk-": a leading "-" would look like a flag
    app = create_app(settings.model_copy(update={"api_key": [_secret(key)]}), engine)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            _wait(server, thread)
            yield OwnServer(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", key)
        finally:
            server.should_exit = True
            thread.join(START_SECONDS)


def _secret(key: str) -> object:
    from pydantic import SecretStr

    return SecretStr(key)


def _wait(server: uvicorn.Server, thread: threading.Thread) -> None:
    for _ in range(int(START_SECONDS * 100)):
        if server.started:
            return
        if not thread.is_alive():
            break
        thread.join(0.01)
    raise EngineError("the engine did not start")
