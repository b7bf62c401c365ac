"""Prepares images in processes of their own, which limits end: no image can hold up a server."""

import hashlib
import logging
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from stonechat_models.child_process import ChildClosedError, ChildEndedError, ChildProcess
from stonechat_models.errors import (
    EngineDeadError,
    EngineError,
    InvalidImageError,
    TooManyImagesError,
)
from stonechat_models.hardware.cpus import usable_cpus
from stonechat_models.vision.hf_processor import CONFIGS
from stonechat_models.vision.recently_used import RecentlyUsed
from stonechat_models.vision.records import Answer, ImageOptions, PreparedImage, Task

logger = logging.getLogger(__name__)

WORKER = "stonechat_models.vision.processor_worker"
PATIENCE_SECONDS = 90.0
"""The time that an image may take, the start of a process included, if processors are busy."""
MAX_IMAGES = 256
"""Images that wait or are in work."""
CACHE_BYTES = 512 << 20
"""Prepared images that are kept. Those of a conversation come again with each of its turns."""


class ImageProcessor:
    """Prepares images for one model. Thread-safe. `close` ends the processes.

    A process starts with the first image, and further ones while all others are busy.
    """

    def __init__(self, folder: Path, token_id: int, num_workers: int | None = None) -> None:
        """`folder` has the files of the model's tokenizer and processor; none is read now but its
        settings. `token_id` is `ImageInfo.token_id`."""
        self._arguments = (str(folder), str(token_id))
        self._seed = _settings_hash(folder)
        workers = num_workers or max(1, min(4, usable_cpus() // 4))
        self._threads = ThreadPoolExecutor(workers, "stonechat-images")
        self._idle: list[ChildProcess] = []
        self._processes: list[ChildProcess] = []
        self._running: dict[bytes, Future[PreparedImage]] = {}
        self._kept: RecentlyUsed[PreparedImage] = RecentlyUsed(CACHE_BYTES)
        self._is_closed = False
        self._lock = threading.Lock()

    def prepare(
        self, images: Sequence[bytes], options: ImageOptions | None = None
    ) -> "Future[list[PreparedImage]]":
        """Prepare image files later, each alone. The result is in their order.

        It raises `InvalidImageError` for the first image that cannot be used, and `EngineError` if
        the processor fails. Equal images in work are prepared once. Raises `TooManyImagesError` at
        once if `MAX_IMAGES` wait, and `EngineDeadError` after `close`. It cannot be cancelled.
        """
        options = options or ImageOptions()
        hashes = [self._content_hash(data, options) for data in images]
        with self._lock:
            if self._is_closed:
                raise EngineDeadError("the image processor is closed")
            new = {key for key in hashes if key not in self._kept and key not in self._running}
            if new and len(self._running) + len(new) > MAX_IMAGES:
                raise TooManyImagesError("too many images are being prepared")
            parts = [
                self._part(key, data, options) for key, data in zip(hashes, images, strict=True)
            ]
        return _joined(parts)

    def close(self) -> None:
        """End all processes at once. Images that wait or are in work raise `EngineDeadError`."""
        with self._lock:
            self._is_closed = True
            parts, self._running = list(self._running.values()), {}
            idle, self._idle = self._idle, []
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.close()
        for process in idle:
            process.end()
        for part in parts:
            part.set_exception(EngineDeadError("the image processor is closed"))

    def _content_hash(self, data: bytes, options: ImageOptions) -> bytes:
        low = b"low" if options.detail == "low" else b""
        return hashlib.blake2b(data, digest_size=16, key=self._seed, person=low).digest()

    def _part(self, key: bytes, data: bytes, options: ImageOptions) -> "Future[PreparedImage]":
        """Return the result of one image. The lock is held."""
        if (part := self._running.get(key)) is not None:
            return part
        part = Future()
        if (image := self._kept.find(key)) is not None:
            part.set_result(image)
            return part
        self._running[key] = part
        self._threads.submit(self._work, Task(data, options, key))
        return part

    def _work(self, task: Task) -> None:
        process = self._process()
        try:
            result: PreparedImage | EngineError = _ask(process, task)
        except EngineError as error:
            result = error
        except Exception as error:
            logger.exception("an image cannot be prepared")
            result = EngineError(f"an image cannot be prepared: {error}")
        with self._lock:
            if self._is_closed:
                process.end()
            self._idle.append(process)
            part = self._running.pop(task.content_hash, None)
            if isinstance(result, PreparedImage):
                self._kept.keep(result.content_hash, result)
        if part is None:  # closed meanwhile
            return
        if isinstance(result, PreparedImage):
            part.set_result(result)
        else:
            part.set_exception(result)

    def _process(self) -> ChildProcess:
        """Take an idle process, or a new one: there is one for each thread at most."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
            process = ChildProcess(WORKER, *self._arguments)
            self._processes.append(process)
            if self._is_closed:
                process.close()
            return process


def _ask(process: ChildProcess, task: Task) -> PreparedImage:
    try:
        data = process.ask(msgspec.msgpack.encode(task), PATIENCE_SECONDS)
    except ChildClosedError:
        raise EngineDeadError("the image processor is closed") from None
    except ChildEndedError as ended:
        raise _excess(ended) from None
    answer = msgspec.msgpack.decode(data, type=Answer)
    if answer.image is not None:
        return answer.image
    if answer.failure:
        raise EngineError(f"images cannot be prepared: {answer.failure}")
    raise InvalidImageError(0, answer.kind, answer.reason)


def _excess(ended: ChildEndedError) -> EngineError:
    """What the end of a process means. Others may kill it, too: that is no fault of the image."""
    if ended.is_late:
        return InvalidImageError(0, "too_large", "takes too long to prepare")
    match ended.signal:
        case signal.SIGPROF:
            return InvalidImageError(0, "too_large", "takes too long to prepare")
        case signal.SIGABRT | signal.SIGSEGV | signal.SIGBUS:
            return InvalidImageError(0, "too_large", "takes too much memory to prepare")
    return EngineError("the process that prepares images has ended")


def _joined(parts: "Sequence[Future[PreparedImage]]") -> "Future[list[PreparedImage]]":
    joined: Future[list[PreparedImage]] = Future()
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
        except InvalidImageError as error:
            index = next(i for i, part in enumerate(parts) if part.exception() is not None)
            joined.set_exception(InvalidImageError(index, error.kind, error.reason))
        except EngineError as error:
            joined.set_exception(error)

    next_part()
    return joined


def _settings_hash(folder: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in CONFIGS:
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.digest()
