"""Runs the batches of a server: new ones, and those that an earlier process left unfinished."""

import asyncio
import logging
from dataclasses import dataclass, field

from stonechat_server.background import BackgroundTasks
from stonechat_server.batches_api.run import BatchRun, Collaborators
from stonechat_server.storage.tables import StoredBatch

SWEEP_SECONDS = 60.0

log = logging.getLogger("stonechat.batches")


@dataclass(slots=True)
class BatchRunner:
    """Owns one task for each batch that runs here.

    A batch runs in one process at a time: a lock beside the files holds it. If the process dies,
    another that serves the model of the batch, or the same one after its start, goes on with it.
    """

    parts: Collaborators
    _runs: dict[str, BatchRun] = field(default_factory=dict, init=False)
    _tasks: BackgroundTasks = field(default_factory=BackgroundTasks, init=False)
    _slots: asyncio.Semaphore = field(init=False)
    _is_draining: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.parts.num_at_once)

    @property
    def batches(self) -> list[StoredBatch]:
        """The batches that run here, with their progress."""
        return [run.batch for run in self._runs.values()]

    def start(self) -> None:
        """Begin to look after batches and expired files. Call it in the event loop."""
        self._tasks.spawn(self._sweep())

    def begin(self, batch: StoredBatch) -> None:
        """Run a batch, unless it runs here already or the server drains."""
        if batch.id in self._runs or self._is_draining:
            return
        run = self._runs[batch.id] = BatchRun(batch, self.parts, self._slots)
        self._tasks.spawn(self._run(run))

    def cancel(self, batch: StoredBatch) -> None:
        """End the requests of a batch whose status is `cancelling`."""
        run = self._runs.get(batch.id)
        if run is None:
            self.begin(batch)
        else:
            run.cancelled.set()

    def drain(self) -> None:
        """Begin no further requests. May be called from the handler of a signal."""
        self._is_draining = True
        for run in self._runs.values():
            run.stopping.set()

    async def close(self) -> None:
        """End the requests that still run; they run again after the next start."""
        self.drain()
        await self._tasks.close()

    async def _run(self, run: BatchRun) -> None:
        try:
            await run.run()
        except Exception:
            log.exception("batch %s stopped, and is tried again", run.batch.id)
        finally:
            del self._runs[run.batch.id]

    async def _sweep(self) -> None:
        storage = self.parts.storage
        while not self._is_draining:
            try:
                for batch in await storage.run(storage.batches.unfinished):
                    is_over = batch.expires_at <= storage.files.clock()
                    if is_over or batch.model is None or self.parts.is_served(batch.model):
                        self.begin(batch)
                await storage.run(storage.files.sweep)
            except Exception:
                log.exception("batches and files could not be looked through")
            await asyncio.sleep(SWEEP_SECONDS)
