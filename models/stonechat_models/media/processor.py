"""Prepares images, audio and videos in processes that limits end: no file can hold up a server."""

import hashlib
import logging
import signal
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from stonechat_models.child_process import ChildClosedError, ChildEndedError, ChildProcess
from stonechat_models.errors import (
    EngineDeadError,
    EngineError,
    InvalidMediaError,
    TooManyMediaError,
)
from stonechat_models.hardware.cpus import usable_cpus
from stonechat_models.media.processor_loading import CONFIGS, VIDEO_CONFIG, counts_images
from stonechat_models.media.recently_used import RecentlyUsed
from stonechat_models.media.records import (
    Answer,
    AudioOptions,
    ImageOptions,
    MediaOptions,
    PreparedMedia,
    Task,
    VideoOptions,
    modality_of,
)
from stonechat_models.types import Modality

logger = logging.getLogger(__name__)

WORKER = "stonechat_models.media.processor_worker"
PATIENCE_SECONDS = 90.0
"""The time that a file may take, the start of a process included, if processors are busy."""
MAX_FILES = 256
"""Files that wait or are in work."""
CACHE_BYTES = 512 << 20
"""Prepared files that are kept. Those of a conversation come again with each of its turns."""


class MediaProcessor:
    """Prepares images, audio and videos for one model. Thread-safe. `close` ends the processes.

    A process for a modality starts with its first file, and further ones while those are busy.
    """

    def __init__(
        self, folder: Path, token_ids: Mapping[str, int], num_workers: int | None = None
    ) -> None:
        """`folder` has the files of the model's tokenizer and processor; none is read now but its
        settings. `token_ids` is `ModelInfo.media_token_ids`."""
        self._folder = str(folder)
        self._token_ids = token_ids
        self._seed = _settings_hash(folder)
        self._counts_images = counts_images(folder)
        workers = num_workers or max(1, min(4, usable_cpus() // 4))
        self._threads = ThreadPoolExecutor(workers, "stonechat-media")
        self._idle: dict[Modality, list[ChildProcess]] = defaultdict(list)
        self._processes: list[ChildProcess] = []
        self._running: dict[bytes, Future[PreparedMedia]] = {}
        self._kept: RecentlyUsed[PreparedMedia] = RecentlyUsed(CACHE_BYTES)
        self._is_closed = False
        self._lock = threading.Lock()

    def prepare(
        self, files: Sequence[bytes], options: MediaOptions
    ) -> "Future[list[PreparedMedia]]":
        """Prepare files later, each alone. The result is in their order.

        It raises `InvalidMediaError` for the first file that cannot be used, and `EngineError` if
        the processor fails. Equal files in work are prepared once. Raises `TooManyMediaError` at
        once if `MAX_FILES` wait, and `EngineDeadError` after `close`. It cannot be cancelled.
        """
        if isinstance(options, ImageOptions) and not self._counts_images:
            options = msgspec.structs.replace(options, among_others=False)
        hashes = [self._content_hash(data, options) for data in files]
        with self._lock:
            if self._is_closed:
                raise EngineDeadError("the media processor is closed")
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
            part.set_exception(EngineDeadError("the media processor is closed"))

    def _content_hash(self, data: bytes, options: MediaOptions) -> bytes:
        match options:
            case ImageOptions():
                kind = b"low" * (options.detail == "low") + b" among" * options.among_others
            case AudioOptions():
                kind = b"audio"
            case VideoOptions():
                kind = b"video %d" % options.max_frames
        return hashlib.blake2b(data, digest_size=16, key=self._seed, person=kind).digest()

    def _part(self, key: bytes, data: bytes, options: MediaOptions) -> "Future[PreparedMedia]":
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
        modality = modality_of(task.options)
        process = self._process(modality)
        try:
            result: PreparedMedia | EngineError = _ask(process, task)
        except EngineError as error:
            result = error
        except Exception as error:
            logger.exception("a file cannot be prepared")
            result = EngineError(f"the {modality} cannot be prepared: {error}")
        with self._lock:
            if self._is_closed:
                process.end()
            self._idle[modality].append(process)
            part = self._running.pop(task.content_hash, None)
            if isinstance(result, PreparedMedia):
                self._kept.keep(result.content_hash, result)
        if part is None:  # closed meanwhile
            return
        if isinstance(result, PreparedMedia):
            part.set_result(result)
        else:
            part.set_exception(result)

    def _process(self, modality: Modality) -> ChildProcess:
        """Take an idle process, or a new one: each modality has one for each thread at most."""
        with self._lock:
            if self._idle[modality]:
                return self._idle[modality].pop()
            token_id = self._token_ids[modality]
            process = ChildProcess(WORKER, self._folder, modality, str(token_id))
            self._processes.append(process)
            if self._is_closed:
                process.close()
            return process


def _ask(process: ChildProcess, task: Task) -> PreparedMedia:
    try:
        data = process.ask(msgspec.msgpack.encode(task), PATIENCE_SECONDS)
    except ChildClosedError:
        raise EngineDeadError("the media processor is closed") from None
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
        case signal.SIGABRT | signal.SIGSEGV | signal.SIGBUS:
            return InvalidMediaError(0, "too_large", "takes too much memory to prepare")
    return EngineError("the process that prepares the file has ended")


def _joined(parts: "Sequence[Future[PreparedMedia]]") -> "Future[list[PreparedMedia]]":
    joined: Future[list[PreparedMedia]] = Future()
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


def _settings_hash(folder: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in (*CONFIGS, VIDEO_CONFIG):
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.digest()
