"""The phases starting, serving and draining, and the deadlines of the requests that run meanwhile.

The first SIGTERM or SIGINT begins the drain: `/ready` answers 503 at once, and new requests are
refused with 503. Running requests may finish within the grace period; after it they end with an
error. A second signal stops the server without waiting.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from typing import TypeVar

from starlette.requests import Request

from stonechat_server.access.auth import Identity
from stonechat_server.access.keys import BATCH_PRIORITY
from stonechat_server.admission.refusals import timed_out, unavailable
from stonechat_server.errors import APIError, invalid

T = TypeVar("T")

SECONDS_TO_SEND_ERRORS = 2.0
TIMEOUT_HEADER = "X-Request-Timeout"


class Deadline:
    """Ends one request at its deadline, or earlier when `expire` is called.

    The deadline is `seconds` after the request began, which was `passed` seconds before the
    construction. That needs a running event loop. None means no limit. `close` stops its timer.
    """

    def __init__(self, seconds: float | None, passed: float = 0.0) -> None:
        self.seconds = seconds
        self._error: APIError | None = None
        self._waiting_task: asyncio.Task[object] | None = None
        """The task that is inside `wait`."""
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds - passed, self._on_deadline)

    def expire(self, error: APIError) -> None:
        """End the request now: `wait` raises this error."""
        self._error = error
        self._on_deadline()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    async def wait(self, work: Awaitable[T]) -> T:
        """Await `work` and return its result.

        At the deadline, cancel it and raise `APIError`: 504, or the error of `expire`.
        """
        if self._is_over:
            if isinstance(work, Coroutine):
                work.close()
            raise self._exceeded()
        task = self._waiting_task = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            if self._is_over and task is not None and task.uncancel() == 0:
                raise self._exceeded() from None
            raise
        finally:
            self._waiting_task = None

    def _on_deadline(self) -> None:
        self._is_over = True
        if self._waiting_task is not None:
            self._waiting_task.cancel()

    def _exceeded(self) -> APIError:
        return self._error or timed_out(
            f"The request took longer than its limit of {self.seconds:g} s.",
            reason="request_timeout",
        )


def request_timeout(header: str, maximum: float | None) -> float:
    """Seconds that a request may take: the value of its header, but at most `maximum`.

    `maximum` None means no limit. Raises `APIError` 400 for a header that is not a positive number.
    """
    try:
        seconds = float(header)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        message = f"{TIMEOUT_HEADER} must be a number of seconds above 0."
        raise invalid(TIMEOUT_HEADER, message)
    return seconds if maximum is None else min(seconds, maximum)


def new_deadline(
    http_request: Request, identity: Identity, maximum: float, started: float
) -> Deadline:
    """The deadline of a request that came at `started`, in `time.monotonic()` seconds.

    `maximum` is the bound of the server in seconds; 0 means none. Raises `APIError` 400.
    """
    is_batch = identity.key.priority >= BATCH_PRIORITY  # the batch expires
    seconds = None if is_batch else maximum or None
    header = http_request.headers.get(TIMEOUT_HEADER)
    if header is None:
        return Deadline(seconds)
    # The bound of the client counts the load of the model too, that of the server does not.
    return Deadline(request_timeout(header, seconds), time.monotonic() - started)


class Phase(StrEnum):
    """The phase of the server."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Lifecycle:
    """Holds the phase and the deadlines of the running requests."""

    def __init__(self, grace_seconds: float) -> None:
        self.phase = Phase.STARTING
        self._grace_seconds = grace_seconds
        self._drain_until = 0.0
        self._running: set[Deadline] = set()
        self._listeners: list[Callable[[], None]] = []

    @property
    def num_running(self) -> int:
        """How many requests run."""
        return len(self._running)

    def enter(self, deadline: Deadline) -> None:
        """Count a request as running. Raises `APIError` 503 while draining, unless it runs."""
        if deadline not in self._running:
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
            self._drain_until = time.monotonic() + self._grace_seconds
            for listener in self._listeners:
                listener()

    def is_drained(self) -> bool:
        """Whether the server may stop. Ends running requests when the grace period is over."""
        if self.phase is not Phase.DRAINING:
            return False
        if not self._running:
            return True
        now = time.monotonic()
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
