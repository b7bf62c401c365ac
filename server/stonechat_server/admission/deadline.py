"""The deadline of a request: how long it may take in total, the time in the queue included."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import TypeVar

from stonechat_server.admission.refusals import timed_out
from stonechat_server.errors import APIError, invalid

T = TypeVar("T")
HEADER = "X-Request-Timeout"


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


def request_timeout(header: str | None, maximum: float | None) -> float | None:
    """Seconds that a request may take: the value of its header, but at most `maximum`.

    `header` None means no header, `maximum` None and a result of None mean no limit.
    Raises `APIError` 400 for a header that is not a positive number.
    """
    if header is None:
        return maximum
    try:
        seconds = float(header)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        message = f"{HEADER} must be a number of seconds above 0."
        raise invalid(HEADER, message)
    return seconds if maximum is None else min(seconds, maximum)
