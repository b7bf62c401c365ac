"""Reads the files of media: out of the request, from hosts that may be asked, by id."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from stonechat_models import Modality
from stonechat_server.errors import APIError, invalid
from stonechat_server.media.budget import Share
from stonechat_server.media.data_urls import least_bytes, read_inline
from stonechat_server.media.errors import MediaError, refused, too_large
from stonechat_server.media.fetch import Fetcher
from stonechat_server.media.file_types import check_type, modality_in
from stonechat_server.media.references import MediaReference
from stonechat_server.schema.messages import FilePart
from stonechat_server.settings import Settings

if TYPE_CHECKING:
    from stonechat_server.media.https import Client

MAX_READS = 4
"""Files by id that are read at the same time, of all requests."""

ReadFile = Callable[[str, int], Awaitable[bytes]]
"""The content of a file of the client, by its id, of at most so many bytes. Raises `APIError`, and
`MediaError` for a file that is too large."""


class MediaReader:
    """Reads files within the bounds of the settings. `client` fetches them: see `Fetcher`."""

    def __init__(self, settings: Settings, client: "Client | None" = None) -> None:
        self._max_bytes: Mapping[Modality, int] = {
            "image": int(settings.max_image_size),
            "audio": int(settings.max_audio_size),
            "video": int(settings.max_video_size),
        }
        self._fetcher = Fetcher(
            settings.allow_image_urls, timeout=settings.image_fetch_timeout, client=client
        )
        self._reads = asyncio.Semaphore(MAX_READS)

    async def read(
        self,
        reference: MediaReference,
        taken: Sequence[Modality],
        read_file: ReadFile,
        files: Share,
    ) -> bytes:
        """The file of an image, audio or a video; the reference then has its modality.

        The file counts in `files` when it is there; one inside the request before it is decoded.
        `taken`: the modalities of the model. Raises `APIError`.
        """
        possible = taken if reference.modality is None else (reference.modality,)
        limit = max(self._max_bytes[modality] for modality in possible)
        least = least_bytes(reference.data)
        least = least if least <= limit else 0  # it will not be decoded
        files.take(least)
        try:
            content = await self._content(reference, limit, read_file)
            modality = reference.modality = reference.modality or modality_in(content, taken)
            if len(content) > self._max_bytes[modality]:
                raise too_large(self._max_bytes[modality])
            check_type(content, modality)
        except MediaError as error:
            raise refused(reference.path, reference.modality or taken[0], error) from error
        except APIError as error:
            error.param = reference.path
            raise
        files.take(len(content) - least)
        return content

    async def _content(
        self, reference: MediaReference, max_bytes: int, read_file: ReadFile
    ) -> bytes:
        """The file that the request has, or names by an id or a URL."""
        url = reference.url
        if reference.content is not None:
            return reference.content
        if (file_id := _file_id(reference)) is not None:
            async with self._reads:
                return await read_file(file_id, max_bytes)
        if url is None or reference.data:
            return await asyncio.to_thread(read_inline, reference.data, max_bytes)
        return await self._fetcher.fetch(url, max_bytes)

    def close(self) -> None:
        """Fetch no more."""
        self._fetcher.close()


def _file_id(reference: MediaReference) -> str | None:
    """The id of a file of the client; None if the file is in the request, or is no `file` part."""
    if not isinstance(reference.part, FilePart):
        return None
    file_id = reference.part.file.file_id
    if (file_id is None) == (not reference.data):
        message = f"'{reference.path}': a file has either a file_id or file_data."
        raise invalid(reference.path, message)
    return file_id
