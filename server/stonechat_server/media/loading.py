"""Loads the images, audio and videos of a request: reads them, and prepares them for the model."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from stonechat_models import (
    AudioOptions,
    ImageOptions,
    InvalidMediaError,
    Modality,
    TooManyMediaError,
    VideoOptions,
)
from stonechat_server.background import call_soon, end_all
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.media.budget import Budget, Share, busy
from stonechat_server.media.errors import refused, too_large_together, too_much_memory
from stonechat_server.media.reading import MediaReader, ReadFile
from stonechat_server.media.references import MediaReference
from stonechat_server.media.taken import check_numbers, check_taken, modalities_of
from stonechat_server.settings import Settings

if TYPE_CHECKING:
    from stonechat_models import PreparedMedia
    from stonechat_server.media.https import Client

T = TypeVar("T")

MAX_LOADING = 64
"""Requests whose media are loaded at the same time. Further ones get 429."""
HELD_REQUESTS = 8
"""Bound on the bytes of files that are not prepared yet, in units of `max_images_size`."""
PREPARED_AT_ONCE = 4
"""Media of one request that the processor has at the same time."""


class Observe(Protocol):
    """Counts what was loaded for one request, once for each modality that it has.

    `duration` is that of sound or videos, `seconds` that of the work.
    """

    def __call__(
        self,
        model: str,
        modality: Modality,
        *,
        num_files: int,
        num_bytes: int,
        duration: float,
        seconds: float,
    ) -> None: ...


class MediaLoader:
    """Loads images, audio and videos within the bounds of the settings. `client`: see `Fetcher`."""

    def __init__(
        self, settings: Settings, observe: Observe, client: "Client | None" = None
    ) -> None:
        self._settings = settings
        self._max_bytes = int(settings.max_images_size)
        self._memory = int(settings.image_memory)
        self._observe = observe
        self._reader = MediaReader(settings, client)
        self._num_requests = 0
        self.files = Budget(HELD_REQUESTS * self._max_bytes)
        """Files that are decoded, or that are there and not prepared."""
        self.prepared = Budget(self._memory)
        """Tensors of the parts that have what they refer to."""

    async def load(
        self,
        references: Sequence[MediaReference],
        engine: EngineLike,
        read_file: ReadFile,
        metrics_name: str,
    ) -> None:
        """Give the part of each reference what it refers to. `release` must follow in any case.

        Raises `APIError` 400 that names the part, and `RefusedError` 429 beyond the bounds on all
        requests together. A cancellation ends the fetches; the processor ends what it has.
        """
        check_taken(references, engine)
        check_numbers(references, self._settings)
        taken = modalities_of(engine.model)
        if self._num_requests >= MAX_LOADING:
            raise busy()
        started = time.monotonic()
        self._num_requests += 1
        files = Share(self.files, self._max_bytes, too_large_together)
        try:
            contents = await _together(
                [self._reader.read(r, taken, read_file, files) for r in references]
            )
            check_numbers(references, self._settings)
            sizes = list(map(len, contents))
            for reference in references:
                reference.shorten()
            await self._prepare_all(references, contents, engine, files)
        finally:
            files.close()
            self._num_requests -= 1
        self._count(references, sizes, metrics_name, time.monotonic() - started)

    def _count(
        self, references: Sequence[MediaReference], sizes: list[int], model: str, seconds: float
    ) -> None:
        for modality in {reference.modality: None for reference in references}:
            assert modality is not None, "the files are read"
            chosen = [i for i, other in enumerate(references) if other.modality == modality]
            media = [references[i].part.media for i in chosen]
            self._observe(
                model,
                modality,
                num_files=len(chosen),
                num_bytes=sum([sizes[i] for i in chosen]),
                duration=sum([one.seconds for one in media if one is not None]),
                seconds=seconds,
            )

    def release(self, references: Sequence[MediaReference]) -> None:
        """Take the media from their parts, loaded or not: the request has ended.

        Until then they count: the engine keeps them, too, to compute them again.
        """
        for reference in references:
            reference.shorten()
            media = reference.part.media
            if media is not None:
                self.prepared.give_back(media.num_bytes)
                reference.part.set_media(None)

    async def _prepare_all(
        self,
        references: Sequence[MediaReference],
        contents: list[bytes],
        engine: EngineLike,
        files: Share,
    ) -> None:
        """Run the model's processor, which has processes of its own, on each file alone.

        So each counts as soon as it is prepared, and the rest are not begun if it is too large.
        `contents` is emptied: a file goes when it is prepared, as it counts no longer.
        """
        turns = asyncio.Semaphore(PREPARED_AT_ONCE)
        prepared = Share(self.prepared, self._memory, too_much_memory)
        among_others = sum([reference.modality == "image" for reference in references]) > 1

        async def prepare(reference: MediaReference, content: bytes) -> None:
            async with turns:
                media = await self._prepare(reference, content, engine, files, among_others)
                prepared.take(media.num_bytes)
                reference.part.set_media(media)

        pairs = zip(references, contents, strict=True)
        works = [prepare(reference, content) for reference, content in pairs]
        contents.clear()
        await _together(works)

    async def _prepare(
        self,
        reference: MediaReference,
        content: bytes,
        engine: EngineLike,
        files: Share,
        among_others: bool,
    ) -> "PreparedMedia":
        """Prepare a file. It counts until the processor is done, also if nobody waits for it."""
        assert reference.modality is not None, "the file is read"
        options = self._options(reference, engine.model.max_model_len, among_others)
        processor = engine.media_processor
        assert processor is not None
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
            raise refused(reference.path, reference.modality, error) from error

    def _options(
        self, reference: MediaReference, max_tokens: int, among_others: bool
    ) -> ImageOptions | AudioOptions | VideoOptions:
        settings = self._settings
        match reference.modality:
            case "audio":
                return AudioOptions(max_seconds=settings.max_audio_seconds)
            case "video":
                return VideoOptions(
                    max_frames=settings.max_video_frames,
                    max_seconds=settings.max_video_seconds,
                    max_pixels=settings.max_image_pixels,
                    max_tokens=max_tokens,
                )
        return ImageOptions(
            detail=reference.detail,
            max_pixels=settings.max_image_pixels,
            among_others=among_others,
        )

    def close(self) -> None:
        """Fetch no more."""
        self._reader.close()


async def _together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all works. The first error ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await end_all(tasks)
