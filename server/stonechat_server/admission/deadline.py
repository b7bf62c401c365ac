"""The deadline of a request: how long it may take in total, the time in the queue included."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine
from typing import TypeVar

from stonechat_server.admission.refusals import timed_out
from stonechat_server.errors import APIError, invalid

T = TypeVar("T")
HEADER = "X-Request-Timeout"


class Deadline:
    """Ends one request at its deadline, or earlier when `expire` is called.

    The deadline is `seconds` after the construction, which needs a running event loop. None means
    no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self.seconds = seconds
        self._when = None if seconds is None else self._loop.time() + seconds
        self._error: APIError | None = None
        self._scope: asyncio.Timeout | None = None
        self._waiting_task: asyncio.Task[object] | None = None
        """The task that waits for the next output."""
        self._is_over = False

    def remaining(self) -> float | None:
        """Seconds left, never below 0."""
        return None if self._when is None else max(0.0, self._when - self._loop.time())

    def expire(self, error: APIError) -> None:
        """End the request now: `run` or `limit` raises this error."""
        self._error = error
        self._when = self._loop.time()
        if self._scope is not None:
            self._scope.reschedule(self._when)
        self._on_deadline()

    async def run(self, work: Awaitable[T]) -> T:
        """Await `work` and return its result. At the deadline, cancel it and raise `APIError`."""
        if self._when is not None and self._loop.time() >= self._when:
            if isinstance(work, Coroutine):
                work.close()
            raise self._exceeded()
        try:
            async with asyncio.timeout_at(self._when) as self._scope:
                return await work
        except TimeoutError:
            if self._scope is None or not self._scope.expired():
                raise
            raise self._exceeded() from None
        finally:
            self._scope = None

    async def limit(self, outputs: AsyncIterator[T]) -> AsyncGenerator[T, None]:
        """Yield the outputs until the deadline. Then raise `APIError`: 504, or that of `expire`.

        One timer serves all outputs, so that an output costs little.
        """
        iterator = aiter(outputs)
        timer = None if self._when is None else self._loop.call_at(self._when, self._on_deadline)
        try:
            while not self._is_over:
                try:
                    yield await self._next(iterator)
                except StopAsyncIteration:
                    return
            raise self._exceeded()
        finally:
            if timer is not None:
                timer.cancel()

    async def _next(self, iterator: AsyncIterator[T]) -> T:
        task = self._waiting_task = asyncio.current_task()
        try:
            return await anext(iterator)
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
