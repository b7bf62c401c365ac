"""Loads the images of a request: reads or fetches them, and prepares them for the model."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from stonechat_models import ImageOptions, InvalidMediaError, TooManyMediaError
from stonechat_server.background import call_soon, end_all
from stonechat_server.errors import APIError, unsupported
from stonechat_server.images.budget import Budget, Share, busy
from stonechat_server.images.data_urls import check_type, is_data_url, read_data_url
from stonechat_server.images.errors import (
    ImageError,
    refused,
    too_large_together,
    too_many,
    too_much_memory,
)
from stonechat_server.images.fetch import Client, Fetcher
from stonechat_server.images.references import ImageReference

if TYPE_CHECKING:
    from stonechat_models import PreparedMedia
    from stonechat_server.engine_protocol import EngineLike, MediaProcessorLike
    from stonechat_server.settings import Settings

T = TypeVar("T")

MAX_LOADING = 64
"""Requests whose images are loaded at the same time. Further ones get 429."""
HELD_REQUESTS = 8
"""Bound on the bytes of files that are not prepared yet, in units of `max_images_size`."""
MAX_READS = 4
"""Files by id that are read at the same time, of all requests."""
PREPARED_AT_ONCE = 4
"""Images of one request that the processor has at the same time."""
TEXT_ONLY = "This model takes text only: no images or files."

ReadFile = Callable[[str, int], Awaitable[bytes]]
"""The content of a file of the client, by its id, of at most so many bytes. Raises `APIError`, and
`ImageError` for a file that is too large."""


class Observe(Protocol):
    """Counts what was loaded for one request."""

    def __call__(self, model: str, num_images: int, num_bytes: int, seconds: float) -> None: ...


def check_takes_images(references: Sequence[ImageReference], engine: "EngineLike") -> None:
    """Raise `APIError` 400, which names the first image, if the model takes none."""
    if references and engine.media_processor is None:
        reason = engine.model.image_refusal
        message = f"This model takes no images here: {reason}" if reason else TEXT_ONLY
        raise unsupported(references[0].path, message)


class ImageLoader:
    """Loads images within the bounds of the settings. `client` fetches them: see `Fetcher`."""

    def __init__(
        self, settings: "Settings", observe: Observe, client: Client | None = None
    ) -> None:
        self._max_images = settings.max_images
        self._max_image_bytes = int(settings.max_image_size)
        self._max_bytes = int(settings.max_images_size)
        self._max_pixels = settings.max_image_pixels
        self._memory = int(settings.image_memory)
        self._observe = observe
        self._fetcher = Fetcher(
            settings.allow_image_urls,
            timeout=settings.image_fetch_timeout,
            max_bytes=self._max_image_bytes,
            client=client,
        )
        self._reads = asyncio.Semaphore(MAX_READS)
        self._num_requests = 0
        self.files = Budget(HELD_REQUESTS * self._max_bytes)
        """Files that are decoded, or that are there and not prepared."""
        self.prepared = Budget(self._memory)
        """Tensors of the parts that have their image."""

    async def load(
        self,
        references: Sequence[ImageReference],
        engine: "EngineLike",
        read_file: ReadFile,
        metrics_name: str,
    ) -> None:
        """Give the part of each reference its image. `release` must follow, also after an error.

        Raises `APIError` 400 that names the part, and `RefusedError` 429 beyond the bounds on all
        requests together. A cancellation ends the fetches; the processor ends what it has.
        """
        check_takes_images(references, engine)
        if len(references) > self._max_images:
            raise too_many(len(references), self._max_images)
        processor = engine.media_processor
        assert processor is not None
        if self._num_requests >= MAX_LOADING:
            raise busy()
        started = time.monotonic()
        self._num_requests += 1
        files = Share(self.files, self._max_bytes, too_large_together)
        try:
            contents = await _together([self._read(r, read_file, files) for r in references])
            num_bytes = sum(map(len, contents))
            for reference in references:
                reference.shorten()
            await self._prepare_all(references, contents, processor, files)
        finally:
            files.close()
            self._num_requests -= 1
        seconds = time.monotonic() - started
        self._observe(metrics_name, len(references), num_bytes, seconds)

    def release(self, references: Sequence[ImageReference]) -> None:
        """Take the images from their parts, loaded or not: the request has ended.

        Until then they count: the engine keeps them, too, to compute them again.
        """
        for reference in references:
            reference.shorten()
            image = reference.part.image
            if image is not None:
                self.prepared.give_back(image.num_bytes)
                reference.part.set_image(None)

    async def _read(self, reference: ImageReference, read_file: ReadFile, files: Share) -> bytes:
        """The file of an image. It counts when it is there; one in its URL before it is decoded."""
        url, least = reference.url, 0
        if url is not None and is_data_url(url):
            least = _least_bytes(url)
            least = least if least <= self._max_image_bytes else 0  # it will not be decoded
        files.take(least)
        content = await self._content(reference, read_file)
        files.take(len(content) - least)
        return content

    async def _content(self, reference: ImageReference, read_file: ReadFile) -> bytes:
        url, limit = reference.url, self._max_image_bytes
        try:
            if url is None:
                async with self._reads:
                    content = await read_file(_file_id(reference), limit)
            elif is_data_url(url):
                return await asyncio.to_thread(read_data_url, url, limit)
            else:
                content = await self._fetcher.fetch(url)
            check_type(content)
            return content
        except ImageError as error:
            raise refused(reference.path, error) from error
        except APIError as error:
            error.param = reference.path
            raise

    async def _prepare_all(
        self,
        references: Sequence[ImageReference],
        contents: list[bytes],
        processor: "MediaProcessorLike",
        files: Share,
    ) -> None:
        """Run the model's processor, which has processes of its own, on each image alone.

        So an image counts as soon as it is there, and the rest are not begun if it is too large.
        `contents` is emptied: a file goes when its image is there, as it counts no longer.
        """
        turns = asyncio.Semaphore(PREPARED_AT_ONCE)
        prepared = Share(self.prepared, self._memory, too_much_memory)

        async def prepare(reference: ImageReference, content: bytes) -> None:
            async with turns:
                image = await self._prepare(reference, content, processor, files)
                prepared.take(image.num_bytes)
                reference.part.set_image(image)

        pairs = zip(references, contents, strict=True)
        works = [prepare(reference, content) for reference, content in pairs]
        contents.clear()
        await _together(works)

    async def _prepare(
        self,
        reference: ImageReference,
        content: bytes,
        processor: "MediaProcessorLike",
        files: Share,
    ) -> "PreparedMedia":
        """Prepare a file. It counts until the processor is done, also if nobody waits for it."""
        options = ImageOptions(detail=reference.detail, max_pixels=self._max_pixels)
        loop = asyncio.get_running_loop()
        files.hand_over(len(content))
        release = partial(call_soon, loop, partial(self.files.give_back, len(content)))

        def submit() -> "Future[list[PreparedMedia]]":
            try:
                future = processor.prepare([content], options)
            except BaseException:
                release()
                raise
            future.add_done_callback(lambda _: release())
            return future

        # In a thread, because it computes a hash of the file. The thread runs in any case. No local
        # variable keeps the future: its error refers to this frame.
        run = loop.run_in_executor
        try:
            return (await asyncio.wrap_future(await asyncio.shield(run(None, submit))))[0]
        except TooManyMediaError as error:
            raise busy() from error
        except InvalidMediaError as error:
            raise refused(reference.path, error) from error

    def close(self) -> None:
        """Fetch no more."""
        self._fetcher.close()


def _file_id(reference: ImageReference) -> str:
    file = reference.part.file  # type: ignore[union-attr]  # it has no URL
    if file.file_id is None:
        raise unsupported(
            reference.path,
            f"'{reference.path}': files in a request are not read. Images go into an image_url "
            "part, or to /v1/files with the purpose vision.",
        )
    return str(file.file_id)


def _least_bytes(url: str) -> int:
    """How many bytes the data of a URL has at least. Padding stands for two at most."""
    return max(0, (len(url) - url.find(",") - 1) // 4 * 3 - 2)


async def _together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all works. The first error ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await end_all(tasks)
