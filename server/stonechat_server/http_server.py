"""uvicorn around the application, with uvloop and httptools where they are installed."""

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

IDLE_CONNECTION_SECONDS = 75
"""Longer than common clients keep a connection, so that it is they who close it."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._on_started()


def serve(
    app: FastAPI, listener: socket.socket, grace_seconds: int, on_started: Callable[[], None]
) -> int:
    """Serve until a signal; 0, or 1 when the start failed."""
    # Streams end by themselves within the grace period; sse-starlette would cut them at once.
    AppStatus.disable_automatic_graceful_drain()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_CONNECTION_SECONDS,
        timeout_graceful_shutdown=grace_seconds,
        lifespan="on",
    )
    server = _Server(config, on_started)
    server.run(sockets=[listener])
    return 0 if server.started else 1
