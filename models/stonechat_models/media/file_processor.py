"""Works on files in processes that limits end: no file can hold up a server."""

import logging
import signal
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import msgspec

from stonechat_models.child_process import ChildClosedError, ChildEndedError, ChildProcess
from stonechat_models.errors import (
    EngineDeadError,
    EngineError,
    InvalidMediaError,
    TooManyMediaError,
)
from stonechat_models.hardware.cpus import usable_cpus
from stonechat_models.media.recently_used import RecentlyUsed, Sized
from stonechat_models.media.records import (
    Answer,
    Document,
    FileOptions,
    PreparedMedia,
    Task,
    kind_of,
)

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 90.0
"""The time that a file may take, the start of a process included, if processors are busy."""
MAX_FILES = 256
"""Files that wait or are in work."""

Options = TypeVar("Options", bound=FileOptions)
Result = TypeVar("Result", bound=Sized)


class FileProcessor(ABC, Generic[Options, Result]):
    """Makes a result of each file. Thread-safe. `close` ends the processes.

    A process of a kind starts with its first file, and further ones while those are busy. Results
    are kept: the files of a conversation come again with each of its turns.
    """

    def __init__(self, cache_bytes: int, num_workers: int | None = None) -> None:
        workers = num_workers or max(1, min(4, usable_cpus() // 4))
        self._threads = ThreadPoolExecutor(workers, "stonechat-media")
        self._idle: dict[str, list[ChildProcess]] = defaultdict(list)
        self._processes: list[ChildProcess] = []
        self._running: dict[bytes, Future[Result]] = {}
        self._kept: RecentlyUsed[Result] = RecentlyUsed(cache_bytes)
        self._is_closed = False
        self._lock = threading.Lock()

    @abstractmethod
    def _content_hash(self, data: bytes, options: Options) -> bytes:
        """Return a hash of a file and of everything else that its result depends on."""

    @abstractmethod
    def _new_process(self, kind: str) -> ChildProcess:
        """Return a process of a kind. It answers a `Task` with an `Answer`, both in MessagePack."""

    def prepare(self, files: Sequence[bytes], options: Options) -> "Future[list[Result]]":
        """Prepare files later, each alone. The result is in their order.

        It raises `InvalidMediaError` for the first file that cannot be used, and `EngineError` if
        the processor fails. Equal files in work are prepared once. Raises `TooManyMediaError` at
        once if `MAX_FILES` wait, and `EngineDeadError` after `close`. It cannot be cancelled.
        """
        hashes = [self._content_hash(data, options) for data in files]
        with self._lock:
            if self._is_closed:
                raise EngineDeadError("the processor of files is closed")
            new = {key for key in hashes if key not in self._kept and key not in self._running}
            if new and len(self._running) + len(new) > MAX_FILES:
                raise TooManyMediaError("too many files are being prepared")
            parts = [
                self._part(key, data, options) for key, data in zip(hashes, files, strict=True)
            ]
        return _joined(parts)

    def close(self) -> None:
        """End all processes at once. Files that wait or are in work raise `EngineDeadError`."""
        with self._lock:
            self._is_closed = True
            parts, self._running = list(self._running.values()), {}
            idle = [process for processes in self._idle.values() for process in processes]
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.close()
        for process in idle:
            process.end()
        for part in parts:
            part.set_exception(EngineDeadError("the processor of files is closed"))

    def _part(self, key: bytes, data: bytes, options: Options) -> "Future[Result]":
        """Return the result of one file. The lock is held."""
        if (part := self._running.get(key)) is not None:
            return part
        part = Future()
        if (kept := self._kept.find(key)) is not None:
            part.set_result(kept)
            return part
        self._running[key] = part
        self._threads.submit(self._work, Task(data, options, key))
        return part

    def _work(self, task: Task) -> None:
        kind = kind_of(task.options)
        process = self._process(kind)
        try:
            result: Any = _ask(process, task)
        except EngineError as error:
            result = error
        except Exception as error:
            logger.exception("a file cannot be prepared")
            result = EngineError(f"the {kind} cannot be prepared: {error}")
        with self._lock:
            if self._is_closed:
                process.end()
            self._idle[kind].append(process)
            part = self._running.pop(task.content_hash, None)
            if not isinstance(result, EngineError):
                self._kept.keep(task.content_hash, result)
        if part is None:  # closed meanwhile
            return
        if isinstance(result, EngineError):
            part.set_exception(result)
        else:
            part.set_result(result)

    def _process(self, kind: str) -> ChildProcess:
        """Take an idle process, or a new one: each kind has one for each thread at most."""
        with self._lock:
            if self._idle[kind]:
                return self._idle[kind].pop()
            process = self._new_process(kind)
            self._processes.append(process)
            if self._is_closed:
                process.close()
            return process


def _ask(process: ChildProcess, task: Task) -> PreparedMedia | Document:
    try:
        data = process.ask(msgspec.msgpack.encode(task), PATIENCE_SECONDS)
    except ChildClosedError:
        raise EngineDeadError("the processor of files is closed") from None
    except ChildEndedError as ended:
        raise _excess(ended) from None
    answer = msgspec.msgpack.decode(data, type=Answer)
    if answer.prepared is not None:
        return answer.prepared
    if answer.failure:
        raise EngineError(f"the file cannot be prepared: {answer.failure}")
    raise InvalidMediaError(0, answer.kind, answer.reason)


def _excess(ended: ChildEndedError) -> EngineError:
    """What the end of a process means. Others may kill it, too: that is no fault of the file."""
    if ended.is_late:
        return InvalidMediaError(0, "too_large", "takes too long to prepare")
    match ended.signal:
        case signal.SIGPROF:
            return InvalidMediaError(0, "too_large", "takes too long to prepare")
        case signal.SIGABRT | signal.SIGSEGV | signal.SIGBUS | signal.SIGILL | signal.SIGTRAP:
            return InvalidMediaError(0, "too_large", "takes too much memory to prepare")
    return EngineError("the process that prepares the file has ended")


def _joined(parts: "Sequence[Future[Result]]") -> "Future[list[Result]]":
    joined: Future[list[Result]] = Future()
    joined.set_running_or_notify_cancel()
    waiting = iter(parts)

    def next_part(_: object = None) -> None:
        """Wait for one part after the other; set the result behind the last."""
        for part in waiting:
            if not part.done():
                part.add_done_callback(next_part)
                return
        try:
            joined.set_result([part.result() for part in parts])
        except InvalidMediaError as error:
            index = next(i for i, part in enumerate(parts) if part.exception() is not None)
            joined.set_exception(InvalidMediaError(index, error.kind, error.reason))
        except EngineError as error:
            joined.set_exception(error)

    next_part()
    return joined
