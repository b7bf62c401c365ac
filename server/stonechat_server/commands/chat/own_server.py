"""A private server in this process, on a socket that only this user can reach.

The terminal chat uses it like any other server, so templates, fields and limits are the same. The
socket is a file in a folder of its own. Where there are none of this kind (Windows), or the path of
the folder for temporary files is too long for one, it is a free port of this machine. The server
has a random key.
"""

import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from stonechat_server.engine_protocol import EngineLike
from stonechat_server.settings import Settings

if TYPE_CHECKING:
    import uvicorn

START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class OwnServer:
    """The API root of a private server, its key, and the path of its socket if it has one."""

    url: str
    key: str
    unix_socket: str | None = None


@contextmanager
def own_server(engine: EngineLike, settings: Settings) -> Iterator[OwnServer]:
    """Serve `engine` until the context ends. Raises `EngineError` if it does not start."""
    import uvicorn

    from stonechat_server.app import create_app

    key = "sk-" + secrets.token_urlsafe(24)  # "sk-": a leading "-" would look like a flag
    own = {"api_key": [SecretStr(key)], "api_key_file": None, "keys_file": None}
    app = create_app(settings.model_copy(update=own), engine)
    with _listener() as (listener, url, path):
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            loop="asyncio",  # uvloop takes every socket that it is given for TCP
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            _wait(server, thread)
            yield OwnServer(url, key, path)
        finally:
            server.should_exit = True
            thread.join(START_SECONDS)


@contextmanager
def _listener() -> Iterator[tuple[socket.socket, str, str | None]]:
    """Yield a listening socket, the URL of its API, and its path. Raises `EngineError`."""
    from stonechat_models import EngineError

    with ExitStack() as stack:
        try:
            opened = _open(stack)
        except OSError as error:
            raise EngineError(f"the chat cannot open a socket: {error}") from error
        yield opened


def _open(stack: ExitStack) -> tuple[socket.socket, str, str | None]:
    if hasattr(socket, "AF_UNIX"):
        with suppress(OSError):  # a long path, or a file system without sockets
            return _open_file(stack)
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}/v1", None


def _open_file(stack: ExitStack) -> tuple[socket.socket, str, str]:
    # Only this user may enter the folder.
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="stonechat-"))
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    path = str(Path(folder) / "socket")
    listener.bind(path)
    listener.listen(16)
    return listener, "http://localhost/v1", path


def _wait(server: "uvicorn.Server", thread: threading.Thread) -> None:
    from stonechat_models import EngineError

    for _ in range(int(START_SECONDS * 100)):
        if server.started:
            return
        if not thread.is_alive():
            break
        thread.join(0.01)
    raise EngineError("the engine did not start")
