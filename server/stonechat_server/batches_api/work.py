"""Answers the requests of one batch: several at a time, each result recorded once.

The server and `stonechat batch run` use it alike.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field

from stonechat_server.batches_api.lines import Answered, InputLine
from stonechat_server.batches_api.results import Result, ResultLog

AnswerLine = Callable[[InputLine], Awaitable[Answered]]
RunBlocking = Callable[..., Awaitable[None]]
WRITE_RETRY_SECONDS = 5.0

log = logging.getLogger("stonechat.batches")


@dataclass(slots=True, kw_only=True)
class BatchWork:
    """Runs once. Cancelling `run` ends the requests that run; results so far are recorded."""

    lines: Generator[InputLine]
    """The requests that are to be answered. Reading them may block. `run` closes it."""
    answer: AnswerLine
    results: ResultLog
    run_blocking: RunBlocking
    """Calls a function with arguments where it may block."""
    slots: asyncio.Semaphore
    """Bounds the requests that run at a time, perhaps over several batches."""
    num_at_once: int
    """Bounds those of this batch."""
    on_results: Callable[[], Awaitable[None]]
    """Called after results have been recorded."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set it to begin no further requests. Those that run may end."""
    _finished: asyncio.Queue[Result | None] = field(default_factory=asyncio.Queue, init=False)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _read: asyncio.Future[InputLine | None] | None = field(default=None, init=False)

    async def run(self) -> None:
        """Answer all requests, or those that run when `stopping` is set."""
        recorder = asyncio.ensure_future(self._record())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.num_at_once):
                    group.create_task(self._work())
        finally:
            self._finished.put_nowait(None)
            if self._read is not None:
                await asyncio.wait([self._read])  # its thread, which cannot be cancelled
            self.lines.close()
            await asyncio.shield(recorder)

    async def _work(self) -> None:
        while not self.stopping.is_set():
            line = await self._next_line()
            if line is None:
                return
            answered = await self._answer(line)
            if answered is None:
                return
            self._finished.put_nowait((line.custom_id, answered))

    async def _next_line(self) -> InputLine | None:
        async with self._reading:
            self._read = asyncio.ensure_future(asyncio.to_thread(next, self.lines, None))
            return await asyncio.shield(self._read)

    async def _answer(self, line: InputLine) -> Answered | None:
        """The final answer; None if the work stops before there is one."""
        while True:
            async with self.slots:
                if self.stopping.is_set():
                    return None
                answered = await self.answer(line)
            if answered.retry_after is None:
                return answered
            try:
                await asyncio.wait_for(self.stopping.wait(), answered.retry_after)
            except TimeoutError:
                continue
            return None

    async def _record(self) -> None:
        """Record what is finished, all at once that waits."""
        is_last = False
        while not is_last:
            results = [await self._finished.get()]
            while not self._finished.empty():
                results.append(self._finished.get_nowait())
            is_last = None in results
            added = [result for result in results if result is not None]
            if added:
                await self._add(added)
                await self._tell()

    async def _tell(self) -> None:
        """Call `on_results`. If it fails, the results are recorded all the same."""
        try:
            await self.on_results()
        except Exception:
            log.exception("the progress of a batch could not be noted")

    async def _add(self, results: list[Result]) -> None:
        while True:
            try:
                await self.run_blocking(self.results.add, results)
            except OSError as error:
                if self.stopping.is_set():
                    raise
                log.error("results of a batch cannot be written, and are tried again: %s", error)
                await asyncio.sleep(WRITE_RETRY_SECONDS)
            else:
                return
