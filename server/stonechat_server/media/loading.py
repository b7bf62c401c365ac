"""Loads the files of a request: reads them, and prepares them for the model."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from stonechat_models import (
    AudioOptions,
    ImageOptions,
    VideoOptions,
)
from stonechat_server.background import end_all
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.media.budget import Budget, Share, busy
from stonechat_server.media.errors import FileKind, too_large_together, too_much_memory
from stonechat_server.media.processing import processed
from stonechat_server.media.reading import MediaReader, ReadFile
from stonechat_server.media.references import MediaReference
from stonechat_server.media.taken import check_numbers, check_taken, modalities_of
from stonechat_server.schema.messages import FilePart, SourcePart, with_contents
from stonechat_server.settings import Settings

if TYPE_CHECKING:
    from stonechat_server.media.documents import DocumentReader
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
        modality: FileKind,
        *,
        num_files: int,
        num_bytes: int,
        duration: float,
        seconds: float,
    ) -> None: ...


class MediaLoader:
    """Loads images, audio, videos and documents within the bounds of the settings. `client`: see
    `Fetcher`."""

    def __init__(
        self, settings: Settings, observe: Observe, client: "Client | None" = None
    ) -> None:
        self._settings = settings
        self._max_bytes = int(settings.max_images_size)
        self._memory = int(settings.image_memory)
        self._observe = observe
        self._reader = MediaReader(settings, client)
        self._documents: DocumentReader | None = None
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
            check_taken(references, engine)
            check_numbers(references, self._settings)
            sizes = list(map(len, contents))
            for reference in references:
                reference.shorten()
            files_of_media = await self._without_documents(references, contents, engine, files)
            contents.clear()
            await self._prepare_all(files_of_media, engine, files)
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
            for part in with_contents([reference.part]):
                if isinstance(part, SourcePart) and part.media is not None:
                    self.prepared.give_back(part.media.num_bytes)
                    part.set_media(None)
            if isinstance(reference.part, FilePart):
                reference.part.set_contents(None)

    async def _without_documents(
        self,
        references: Sequence[MediaReference],
        contents: Sequence[bytes],
        engine: EngineLike,
        files: Share,
    ) -> list[tuple[MediaReference, bytes]]:
        """Read the documents. Return the other files, and the images of pages."""
        pairs = list(zip(references, contents, strict=True))
        others = [pair for pair in pairs if pair[0].modality != "document"]
        if len(others) == len(pairs):
            return others
        if self._documents is None:
            from stonechat_server.media.documents import DocumentReader

            self._documents = DocumentReader(self._settings)
        return others + await self._documents.read(references, contents, engine, files)

    async def _prepare_all(
        self, pairs: list[tuple[MediaReference, bytes]], engine: EngineLike, files: Share
    ) -> None:
        """Run the model's processor, which has processes of its own, on each file alone.

        So each counts as soon as it is prepared, and the rest are not begun if it is too large.
        `pairs` is emptied: a file goes when it is prepared, as it counts no longer.
        """
        turns = asyncio.Semaphore(PREPARED_AT_ONCE)
        prepared = Share(self.prepared, self._memory, too_much_memory)
        among_others = sum([reference.modality == "image" for reference, _ in pairs]) > 1

        async def prepare(reference: MediaReference, content: bytes) -> None:
            async with turns:
                assert engine.media_processor is not None, "the model takes media"
                options = self._options(reference, engine.model.max_model_len, among_others)
                media = await processed(engine.media_processor, reference, content, options, files)
                prepared.take(media.num_bytes)
                reference.part.set_media(media)

        works = [prepare(reference, content) for reference, content in pairs]
        pairs.clear()
        await _together(works)

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
        """Fetch no more, and end the processes that read documents."""
        self._reader.close()
        if self._documents is not None:
            self._documents.close()


async def _together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all works. The first error ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await end_all(tasks)
