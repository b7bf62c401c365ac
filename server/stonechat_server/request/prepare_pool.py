"""Prepares requests outside the event loop: a few at a time, with a bound on those that wait.

Rendering a template holds the interpreter lock, so more threads would only delay the event loop. A
request that waits here keeps its body in memory. No thread waits for the check of a grammar.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from stonechat_models import GrammarError, TooManyChecksError
from stonechat_server.admission.refusals import RefusedError, too_many_requests, unavailable
from stonechat_server.background import call_soon
from stonechat_server.structured.grammar_checks import GrammarPendingError

T = TypeVar("T")

RETRY_AFTER_SECONDS = 1.0
MAX_CHECKING = 64
"""Requests whose grammars are being checked."""


class Preparations:
    """Runs work in `num_threads` threads of its own, and refuses work beyond its bounds.

    `max_waiting` bounds the requests that wait, `max_bytes` the bodies of all that wait or run. A
    body alone is never too large. Everything but the work runs on the event loop.
    """

    def __init__(self, num_threads: int, max_waiting: int, max_bytes: int) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="prepare")
        self._max_requests = num_threads + max_waiting
        self._max_bytes = max_bytes
        self.num_requests = 0
        self._waiting: dict[asyncio.Event, Future[GrammarError | None]] = {}
        self._is_draining = False
        self.num_bytes = 0

    def check(self, size: int = 0) -> None:
        """Raise `RefusedError` 429 if there is no room for a body of `size` bytes now."""
        is_full = self.num_requests >= self._max_requests
        if is_full or (self.num_requests and self.num_bytes + size > self._max_bytes):
            raise _pool_full()

    async def run(self, work: Callable[[], T], size: int) -> T:
        """Run `work` for a body of `size` bytes and return its result.

        Runs it again after `GrammarPendingError`, once that check is done. Raises `RefusedError`
        429 like `check`, or if too many grammars are being checked; and the errors of `work`.
        """
        while True:
            try:
                return await self._run_once(work, size)
            except GrammarPendingError as pending:
                await self._wait_for(pending, size)
            except TooManyChecksError as error:
                raise _pool_full() from error

    async def _run_once(self, work: Callable[[], T], size: int) -> T:
        self.check(size)
        self._count(1, size)
        # Work counts until it ends, even if its request was cancelled.
        future = self._executor.submit(work)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: call_soon(loop, lambda: self._count(-1, -size)))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda _: call_soon(loop, lambda: self._abandon(future)))
            raise

    async def _wait_for(self, pending: GrammarPendingError, size: int) -> None:
        """Wait until a grammar is checked. The next run of the work sees the result.

        Raises the error of a check that has failed.
        """
        if len(self._waiting) >= MAX_CHECKING:
            self._drop_unwanted(pending)
            raise _pool_full()
        loop, wakes = asyncio.get_running_loop(), asyncio.Event()
        pending.check.add_done_callback(lambda _: call_soon(loop, wakes.set))
        self._waiting[wakes] = pending.check
        self.num_bytes += size
        try:
            if not self._is_draining:
                await wakes.wait()
        finally:
            del self._waiting[wakes]
            self.num_bytes -= size
            self._drop_unwanted(pending)
        if self._is_draining:
            raise unavailable("The server is shutting down.", reason="draining", retry_after=5)
        if not pending.check.cancelled() and (error := pending.check.exception()):
            raise error

    def _abandon(self, future: Future[T]) -> None:
        """End what the work of a request that has left still waits for."""
        error = None if future.cancelled() else future.exception()
        if isinstance(error, GrammarPendingError):
            self._drop_unwanted(error)

    def _drop_unwanted(self, pending: GrammarPendingError) -> None:
        if not pending.check.done() and pending.check not in self._waiting.values():
            pending.drop()

    def drain(self) -> None:
        """Refuse with 503 what waits for the check of a grammar, now and from now on."""
        self._is_draining = True
        for wakes in self._waiting:
            wakes.set()

    def close(self) -> None:
        """Start no more work. Does not wait for work that runs."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _count(self, num_requests: int, size: int) -> None:
        self.num_requests += num_requests
        self.num_bytes += size


def _pool_full() -> RefusedError:
    return too_many_requests(
        "Too many large requests are being prepared. Try again later.",
        reason="preparation_full",
        retry_after=RETRY_AFTER_SECONDS,
    )
