"""The phases starting, serving and draining, and the server whose signals change the phase.

The first SIGTERM or SIGINT begins the drain: `/ready` answers 503 at once, and new requests are
refused with 503. Running requests may finish within the grace period; after it they end with an
error. A second signal stops the server without waiting.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from enum import StrEnum
from types import FrameType

import uvicorn

from stonechat_server.admission.deadline import Deadline
from stonechat_server.admission.refusals import unavailable
from stonechat_server.errors import APIError
from stonechat_server.serving.connections import SilentConnections

SECONDS_TO_SEND_ERRORS = 2.0

logger = logging.getLogger("stonechat.lifecycle")


class Phase(StrEnum):
    """The phase of the server."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Lifecycle:
    """Holds the phase and the deadlines of the running requests."""

    def __init__(self, grace_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.phase = Phase.STARTING
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._drain_until = 0.0
        self._running: set[Deadline] = set()
        self._listeners: list[Callable[[], None]] = []

    @property
    def num_running(self) -> int:
        """How many requests run."""
        return len(self._running)

    def enter(self, deadline: Deadline) -> None:
        """Count a request as running. Raises `APIError` 503 while draining."""
        self.check()
        self._running.add(deadline)

    def leave(self, deadline: Deadline) -> None:
        """Count a request as ended, if it ever ran."""
        self._running.discard(deadline)

    def check(self) -> None:
        """Raise `APIError` 503 while draining."""
        if self.phase is Phase.DRAINING:
            raise unavailable("The server is shutting down.", reason="draining", retry_after=5)

    def serving(self) -> None:
        """Note that the start is complete."""
        self.phase = Phase.SERVING

    def when_draining(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the drain begins, perhaps from the handler of a signal."""
        self._listeners.append(listener)

    def begin_drain(self) -> None:
        """Refuse new requests. Running requests have the grace period to finish."""
        if self.phase is not Phase.DRAINING:
            self.phase = Phase.DRAINING
            self._drain_until = self._clock() + self._grace_seconds
            for listener in self._listeners:
                listener()

    def is_drained(self) -> bool:
        """Whether the server may stop. Ends running requests when the grace period is over."""
        if self.phase is not Phase.DRAINING:
            return False
        if not self._running:
            return True
        now = self._clock()
        if now >= self._drain_until:
            for deadline in self._running:
                deadline.expire(_drained_error())
        return now >= self._drain_until + SECONDS_TO_SEND_ERRORS


def _drained_error() -> APIError:
    return unavailable(
        "The server is shutting down and could not finish this request in time.",
        reason="drained",
        retry_after=5,
    )


class DrainingServer(uvicorn.Server):
    """uvicorn with these signals and bounds on headers. It closes connections without a request."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle) -> None:
        config.http, config.ws = _protocol_class(), "none"
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
            logger.info("draining: %d requests still run", self._lifecycle.num_running)
        if self._lifecycle.is_drained():
            self.should_exit = True
        if not counter % 10:
            self._silent.drop(self.server_state.connections, time.monotonic())
        return await super().on_tick(counter)


def _protocol_class() -> type[asyncio.Protocol]:
    try:
        from stonechat_server.serving.httptools_protocol import LimitedHttpTools
    except ImportError:
        from stonechat_server.serving.h11_protocol import LimitedH11

        return LimitedH11
    return LimitedHttpTools
