"""One batch from its check to its files of results, from whatever point an earlier run reached."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from stonechat_server.access.auth import Identity
from stonechat_server.batches_api.check import CheckedInput, InputCheck, Problem
from stonechat_server.batches_api.lines import (
    CANCELLED,
    ENVELOPE_BYTES,
    EXPIRED,
    Answered,
    InputLine,
    LineError,
    open_requests,
)
from stonechat_server.batches_api.results import ResultLog
from stonechat_server.batches_api.work import BatchWork
from stonechat_server.storage.storage import Storage
from stonechat_server.storage.tables import UNFINISHED, StoredBatch, StoredFile

Answer = Callable[[str, bytes, Identity], Awaitable[Answered]]
"""Answers a body that is for the endpoint of that path, as that identity."""

NOTE_SECONDS = 0.5
PIECE = 500
"""So many results are written at a time if there are no answers to wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collaborators:
    """What the runs of batches need of the server."""

    storage: Storage
    answer: Answer
    find_owner: Callable[[str], Identity | None]
    """Who runs the batches of an owner; None if there is no such key now."""
    model_of: Callable[[str | None, Identity], str]
    """The name of the model that a request gets. Raises `APIError` 404."""
    is_served: Callable[[str], bool]
    """Whether a model is served here."""
    max_body_bytes: int
    num_at_once: int
    """Bounds the requests of all batches that run at a time."""


@dataclass(slots=True)
class BatchRun:
    """Runs a batch once. `run` returns when it has ended, or when `stopping` is set."""

    batch: StoredBatch
    parts: Collaborators
    slots: asyncio.Semaphore
    stopping: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _next_note: float = field(default=0.0, init=False)

    async def run(self) -> None:
        """Go on with the batch, unless another process has it."""
        lock = FileLock(self._file(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return
        try:
            await self._move()  # as it is by now
            if self.batch.status == "validating":
                await self._check()
            if self.batch.is_unfinished and self.batch.status != "validating":
                await self._work()
        finally:
            lock.release()
            if not self.batch.is_unfinished:
                with suppress(OSError):
                    self._file(".lock").unlink(missing_ok=True)

    async def _check(self) -> None:
        now = int(self._now())
        identity = self.parts.find_owner(self.batch.owner)
        if identity is None:  # it waits for its key
            if now >= self.batch.expires_at:
                await self._move("validating", status="expired", expired_at=now)
            return
        check = InputCheck(
            self.batch.endpoint,
            lambda name: self.parts.model_of(name, identity),
            self.parts.max_body_bytes,
        )
        try:
            found = await asyncio.to_thread(check.check, self._input)
        except FileNotFoundError:
            problem = Problem(code="file_not_found", message="The input file is gone.")
            found = CheckedInput(problems=[problem])
        if found.problems:
            text = msgspec.json.encode(found.problems).decode()
            await self._move("validating", status="failed", failed_at=now, problems=text)
        else:
            await self._move(
                "validating",
                status="in_progress",
                in_progress_at=now,
                model=found.model,
                num_total=found.num_requests,
            )

    async def _work(self) -> None:
        final_paths = map(self.parts.storage.files.path, self._result_ids)
        if not any(path.exists() for path in final_paths):  # else a kill came in `_end`
            results = ResultLog(*self._result_paths)
            await asyncio.to_thread(results.open)
            try:
                if not await self._complete(results):
                    return
            finally:
                await self.parts.storage.run(results.close)  # behind what is being written
        await self._end()

    async def _complete(self, results: ResultLog) -> bool:
        """Get a result for every request; False if the batch goes on later."""
        if self.batch.status == "in_progress":
            await self._answer_all(results)
            if not await self._finalize(results):
                return False
        if self.batch.expired_at is not None:
            await self._fill(results, EXPIRED)
        elif self.batch.status == "cancelling" and self.batch.in_progress_at is not None:
            await self._fill(results, CANCELLED)
        await self._note_progress(results, is_last=True)
        return True

    async def _answer_all(self, results: ResultLog) -> None:
        """Answer until all is done, or the batch is cancelled, expires, stops or has no key."""
        seconds_left = self.batch.expires_at - self._now()
        if seconds_left <= 0 or self.parts.find_owner(self.batch.owner) is None:
            return
        work = BatchWork(
            lines=self._open(results),
            answer=self._answer,
            results=results,
            run_blocking=self.parts.storage.run,
            slots=self.slots,
            num_at_once=min(self.parts.num_at_once, self.batch.num_total),
            on_results=lambda: self._note_progress(results),
            stopping=self.stopping,
        )
        working = asyncio.ensure_future(work.run())
        cancelled = asyncio.ensure_future(self.cancelled.wait())
        try:
            await asyncio.wait(
                {working, cancelled}, timeout=seconds_left, return_when=asyncio.FIRST_COMPLETED
            )
            if working.done():
                working.result()
        finally:
            working.cancel()
            cancelled.cancel()
            await asyncio.gather(working, cancelled, return_exceptions=True)

    async def _answer(self, line: InputLine) -> Answered:
        identity = self.parts.find_owner(self.batch.owner)
        if identity is None:  # another server may have the key, or this one again later
            self.stopping.set()
            return Answered(401, "", b"null", retry_after=0.0)
        return await self.parts.answer(line.url, bytes(line.body), identity)

    async def _finalize(self, results: ResultLog) -> bool:
        """Note that no more is answered; False if the batch goes on later."""
        now = int(self._now())
        is_complete = len(results.done) >= self.batch.num_total
        if not is_complete and now < self.batch.expires_at:
            await self._note_progress(results, is_last=True)
            return self.batch.status == "cancelling"
        expired_at = None if is_complete else now
        await self._move(
            "in_progress", status="finalizing", finalizing_at=now, expired_at=expired_at
        )
        return True

    async def _fill(self, results: ResultLog, error: LineError) -> None:
        """Give all requests without a result this one."""
        ids = await asyncio.to_thread(lambda: [line.custom_id for line in self._open(results)])
        for start in range(0, len(ids), PIECE):
            added = [(custom_id, error) for custom_id in ids[start : start + PIECE]]
            await self.parts.storage.run(results.add, added)

    async def _end(self) -> None:
        """Make files of the results, and give the batch its last status. May be repeated."""
        has_output = await self._keep(0, "output")
        has_errors = await self._keep(1, "errors")
        if self.batch.status == "cancelling":
            values: dict[str, object] = {"status": "cancelled", "cancelled_at": int(self._now())}
        elif self.batch.expired_at is not None:
            values = {"status": "expired"}
        else:
            values = {"status": "completed", "completed_at": int(self._now())}
        values |= {"has_output": has_output, "has_errors": has_errors}
        await self._move(self.batch.status, **values)

    async def _keep(self, index: int, kind: str) -> bool:
        """Make a file of results, unless there are none. Returns whether there is a file."""
        files, batch = self.parts.storage.files, self.batch
        path, file_id = self._result_paths[index], self._result_ids[index]

        def keep() -> bool:
            content = path if path.exists() else files.path(file_id)
            if not content.exists() or not content.stat().st_size:
                path.unlink(missing_ok=True)
                return False
            now, lifetime = self._now(), batch.output_lifetime
            file = StoredFile(
                id=file_id,
                owner=batch.owner,
                filename=f"{batch.id}_{kind}.jsonl",
                purpose="batch_output",
                num_bytes=content.stat().st_size,
                created=now,
                expires_at=None if lifetime is None else int(now) + lifetime,
            )
            files.keep(path, file)
            return True

        return await self.parts.storage.run(keep)

    async def _note_progress(self, results: ResultLog, *, is_last: bool = False) -> None:
        """Store the counts, at most twice a second, and see whether somebody has cancelled."""
        now = time.monotonic()
        if is_last or now >= self._next_note:
            self._next_note = now + NOTE_SECONDS
            await self._move(*UNFINISHED, **asdict(results.counts))
            if self.batch.status == "cancelling":
                self.cancelled.set()

    async def _move(self, *old: str, **values: object) -> None:
        """Set values if the status is one of `old`, and see how the batch is now."""
        batches = self.parts.storage.batches
        self.batch = await self.parts.storage.run(batches.move, self.batch, old, **values)

    def _now(self) -> float:
        return self.parts.storage.files.clock()

    def _open(self, results: ResultLog) -> Generator[InputLine]:
        max_bytes = self.parts.max_body_bytes + ENVELOPE_BYTES
        return open_requests(self._input, results.done, max_bytes)

    @property
    def _input(self) -> Path:
        return self.parts.storage.files.path(self.batch.input_file_id)

    @property
    def _result_ids(self) -> tuple[str, str]:
        return self.batch.output_id, self.batch.errors_id

    @property
    def _result_paths(self) -> tuple[Path, Path]:
        """Where the results lie while the batch runs."""
        return self._file(".output"), self._file(".errors")

    def _file(self, ending: str) -> Path:
        return self.parts.storage.files.folder / f"{self.batch.id}{ending}"
