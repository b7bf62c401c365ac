"""Runs the application in uvicorn, with uvloop if it is installed."""

import logging
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI

from stonechat_server.serving.connections import SilentConnections, allow_many
from stonechat_server.serving.httptools_protocol import LimitedHttpTools
from stonechat_server.serving.lifecycle import Lifecycle
from stonechat_server.serving.services import Services

IDLE_CONNECTION_SECONDS = 75
"""Longer than common clients keep an idle connection, so that the client closes it first."""

CLOSING_SECONDS = 5
"""Time for the rest of unfinished answers after the drain."""


logger = logging.getLogger("stonechat.lifecycle")


class DrainingServer(uvicorn.Server):
    """uvicorn with these signals and bounds on headers. It closes connections without a request."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle) -> None:
        config.http, config.ws = LimitedHttpTools, "none"
        super().__init__(config)
        self._lifecycle = lifecycle
        self._silent = SilentConnections()
        self._num_signals = 0
        self._is_drain_logged = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._num_signals += 1
        if self._num_signals == 1:
            self._lifecycle.begin_drain()
            return
        self.should_exit = True
        self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._num_signals and not self._is_drain_logged:
            self._is_drain_logged = True
            logger.info("draining; requests that still run: %d", self._lifecycle.num_running)
        if self._lifecycle.is_drained():
            self.should_exit = True
        if not counter % 10:
            connections = cast("Collection[LimitedHttpTools]", self.server_state.connections)
            self._silent.drop(connections, time.monotonic())
        return await super().on_tick(counter)


class _Server(DrainingServer):
    def __init__(
        self, config: uvicorn.Config, lifecycle: Lifecycle, on_started: Callable[[], object]
    ) -> None:
        super().__init__(config, lifecycle)
        self._on_started = on_started
        self.is_refused = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self.is_refused = self.should_exit = self._on_started() is False


def serve(
    app: FastAPI,
    listener: socket.socket,
    on_started: Callable[[], object],
    *,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> int:
    """Serve until a signal, then drain. Returns 0, or 1 if the start failed.

    If `on_started` returns False, the server stops at once, and its start counts as failed.
    """
    allow_many()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_CONNECTION_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        lifespan="on",
    )
    state: Services = app.state.server
    server = _Server(config, state.lifecycle, on_started)
    server.run(sockets=[listener])
    return 0 if server.started and not server.is_refused else 1
