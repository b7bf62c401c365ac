"""Loads the images of a request: reads or fetches them, and prepares them for the model."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Protocol
from weakref import finalize

from stonechat_models import ImageOptions, InvalidImageError, TooManyImagesError, size_text
from stonechat_server.admission.refusals import too_many_requests
from stonechat_server.background import call_soon
from stonechat_server.errors import APIError, invalid, unsupported
from stonechat_server.images.data_urls import check_type, is_data_url, read_data_url
from stonechat_server.images.errors import ImageError
from stonechat_server.images.fetch import Client, Fetcher
from stonechat_server.images.references import ImageReference

if TYPE_CHECKING:
    from stonechat_models import PreparedImage
    from stonechat_server.engine_protocol import EngineLike, ImageProcessorLike
    from stonechat_server.settings import Settings

MAX_LOADING = 64
"""Requests whose images are loaded at the same time. Further ones get 429."""
HELD_REQUESTS = 8
"""Bound on the bytes of images that are loaded, in units of `max_images_size`."""
CODES = {
    "format": "unsupported_image_media_type",
    "empty": "empty_image_file",
    "broken": "image_parse_error",
    "too_large": "image_too_large",
}
"""The code of the error for each kind of `InvalidImageError`."""
TEXT_ONLY = "This model takes text only: no images or files."

ReadFile = Callable[[str, int], Awaitable[bytes]]
"""The content of a file of the client, by its id, of at most so many bytes. Raises `APIError`, and
`ImageError` for a file that is too large."""


class Observe(Protocol):
    """Counts what was loaded for one request."""

    def __call__(self, model: str, num_images: int, num_bytes: int, seconds: float) -> None: ...


def check_takes_images(references: Sequence[ImageReference], engine: "EngineLike") -> None:
    """Raise `APIError` 400, which names the first image, if the model takes none."""
    if references and engine.image_processor is None:
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
        self._num_requests = self._num_bytes = self._num_prepared_bytes = 0

    async def load(
        self,
        references: Sequence[ImageReference],
        engine: "EngineLike",
        read_file: ReadFile,
        metrics_name: str,
    ) -> None:
        """Give the part of each reference its image. The order is that of the prompt.

        Raises `APIError` 400 that names the part, and `RefusedError` 429 beyond the bounds on all
        requests together. A cancellation ends the fetches; the processor ends what it has.
        """
        check_takes_images(references, engine)
        self._check_number(len(references))
        processor = engine.image_processor
        assert processor is not None
        if self._num_requests >= MAX_LOADING:
            raise _busy()
        started = time.monotonic()
        self._num_requests += 1
        try:
            contents = await self._read_all(references, read_file)
            for reference in references:
                reference.shorten()
            self._check_room(sum(map(len, contents)))
            await self._prepare_all(references, contents, processor)
        finally:
            self._num_requests -= 1
        seconds = time.monotonic() - started
        self._observe(metrics_name, len(references), sum(map(len, contents)), seconds)

    def _check_number(self, number: int) -> None:
        if number > self._max_images:
            raise APIError(
                400,
                f"There are {number} images, and at most {self._max_images} are allowed: the "
                "server's --max-images sets the limit.",
                param="messages",
                code="too_many_images",
            )

    async def _read_all(
        self, references: Sequence[ImageReference], read_file: ReadFile
    ) -> list[bytes]:
        """The files of all images. The first error ends the others, as does their size together."""
        num_bytes = 0

        async def read(reference: ImageReference) -> bytes:
            nonlocal num_bytes
            content = await self._read(reference, read_file)
            num_bytes += len(content)
            if num_bytes > self._max_bytes:
                raise _too_large_together(self._max_bytes)
            return content

        tasks = [asyncio.ensure_future(read(reference)) for reference in references]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, reference: ImageReference, read_file: ReadFile) -> bytes:
        url, limit = reference.url, self._max_image_bytes
        try:
            if url is None:
                content = await read_file(_file_id(reference), limit)
            elif is_data_url(url):
                return await asyncio.to_thread(read_data_url, url, limit)
            else:
                content = await self._fetcher.fetch(url)
            check_type(content)
            return content
        except ImageError as error:
            raise _named(reference, error) from error
        except APIError as error:
            error.param = reference.path
            raise

    def _check_room(self, num_bytes: int) -> None:
        if self._num_bytes and self._num_bytes + num_bytes > HELD_REQUESTS * self._max_bytes:
            raise _busy()

    async def _prepare_all(
        self,
        references: Sequence[ImageReference],
        contents: Sequence[bytes],
        processor: "ImageProcessorLike",
    ) -> None:
        """Run the model's processor, which has processes of its own."""
        pairs = sorted(zip(references, contents, strict=True), key=lambda pair: pair[0].detail)
        for detail, group in groupby(pairs, key=lambda pair: pair[0].detail):
            chosen, files = zip(*group, strict=True)
            options = ImageOptions(detail=detail, max_pixels=self._max_pixels)
            try:
                images = await self._prepare(files, options, processor)
            except TooManyImagesError as error:
                raise _busy() from error
            except InvalidImageError as error:
                path = chosen[error.index].path
                code = CODES.get(error.kind, "invalid_image")
                raise invalid(path, f"'{path}': the image {error.reason}.", code) from error
            self._hold(images, chosen)

    def _hold(
        self, images: "Sequence[PreparedImage]", references: Sequence[ImageReference]
    ) -> None:
        """Give each part its image. Its tensors count as long as the part is there, which is as
        long as its request waits or runs: the engine keeps them, too, to compute it again."""
        sizes = [sum(len(t.data) for t in image.tensors.values()) for image in images]
        if self._num_prepared_bytes and self._num_prepared_bytes + sum(sizes) > self._memory:
            raise _busy()
        loop = asyncio.get_running_loop()
        for reference, image, size in zip(references, images, sizes, strict=True):
            self._num_prepared_bytes += size
            reference.part.set_image(image)
            let_go = partial(self._let_go, size)
            finalize(reference.part, call_soon, loop, let_go).atexit = False

    def _let_go(self, num_bytes: int) -> None:
        self._num_prepared_bytes -= num_bytes

    async def _prepare(
        self, files: Sequence[bytes], options: ImageOptions, processor: "ImageProcessorLike"
    ) -> "list[PreparedImage]":
        """Prepare files. They count until the processor is done, also if nobody waits for it."""
        num_bytes = sum(map(len, files))
        loop = asyncio.get_running_loop()
        self._num_bytes += num_bytes
        try:  # in a thread, because it computes hashes of the files
            future = await asyncio.to_thread(processor.prepare, files, options)
        except BaseException:
            self._release(num_bytes)
            raise
        future.add_done_callback(lambda _: call_soon(loop, lambda: self._release(num_bytes)))
        return await asyncio.wrap_future(future)

    def _release(self, num_bytes: int) -> None:
        self._num_bytes -= num_bytes

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


def _named(reference: ImageReference, error: ImageError) -> APIError:
    what = "URL" if error.code == "invalid_image_url" else "image"
    return invalid(reference.path, f"'{reference.path}': the {what} {error}.", code=error.code)


def _too_large_together(limit: int) -> APIError:
    return APIError(
        400,
        f"The images have more than {size_text(limit)} together, the limit that the server's "
        "--max-images-size sets.",
        param="messages",
        code="image_file_too_large",
    )


def _busy() -> APIError:
    return too_many_requests(
        "The images of too many requests are being loaded. Try again later.",
        reason="images_full",
        retry_after=1.0,
    )
