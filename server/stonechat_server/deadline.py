"""Deadlines of a request: how long it may wait in the queue, and how long it may take in all."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine
from typing import TypeVar

from stonechat_server.errors import APIError, invalid
from stonechat_server.refusals import timed_out

T = TypeVar("T")
HEADER = "X-Request-Timeout"


class Deadline:
    """Ends one request's generation in time, or earlier when `expire` says so.

    `seconds` counts from the construction, which needs a running event loop; None: no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self.seconds = seconds
        self._when = None if seconds is None else self._loop.time() + seconds
        self._error: APIError | None = None
        self._scope: asyncio.Timeout | None = None

    def remaining(self) -> float | None:
        """Seconds left, never below 0."""
        return None if self._when is None else max(0.0, self._when - self._loop.time())

    def expire(self, error: APIError) -> None:
        """End the request now: whoever iterates gets this error."""
        self._error = error
        self._when = self._loop.time()
        if self._scope is not None:
            self._scope.reschedule(self._when)

    async def run(self, work: Awaitable[T]) -> T:
        """The result of `work`. At the deadline it is cancelled, and `APIError` raised."""
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
        """The outputs until the deadline; then raises `APIError` (504, or what expired it)."""
        iterator = aiter(outputs)
        while True:
            try:
                output = await self.run(anext(iterator))
            except StopAsyncIteration:
                return
            yield output

    def _exceeded(self) -> APIError:
        return self._error or timed_out(
            f"The request took longer than its limit of {self.seconds:g} s.",
            reason="request_timeout",
        )


def request_timeout(header: str | None, maximum: float | None) -> float | None:
    """Seconds that a request may take: what its header asks for, within the server's maximum.

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
