"""Reads files: out of the request, from hosts that may be asked, by id."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from stonechat_models import Modality
from stonechat_server.errors import APIError, invalid
from stonechat_server.media.budget import Share
from stonechat_server.media.data_urls import least_bytes, read_inline
from stonechat_server.media.errors import FileKind, MediaError, refused, too_large
from stonechat_server.media.fetch import Fetcher
from stonechat_server.media.file_types import check_type, kind_of
from stonechat_server.media.references import MediaReference
from stonechat_server.schema.messages import FilePart, FileReference
from stonechat_server.settings import Settings

if TYPE_CHECKING:
    from stonechat_server.media.https import Client

MAX_READS = 4
"""Files by id that are read at the same time, of all requests."""

ReadFile = Callable[[str, int], Awaitable[tuple[bytes, str]]]
"""The content and the name of a file of the client, by its id, of at most so many bytes. Raises
`APIError`, and `MediaError` for a file that is too large."""


class MediaReader:
    """Reads files within the bounds of the settings. `client` fetches them: see `Fetcher`."""

    def __init__(self, settings: Settings, client: "Client | None" = None) -> None:
        self._max_bytes: Mapping[FileKind, int] = {
            "image": int(settings.max_image_size),
            "audio": int(settings.max_audio_size),
            "video": int(settings.max_video_size),
            "document": int(settings.max_document_size),
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
        """The file of an image, audio, a video or a document; the reference then has its modality.

        The file counts in `files` when it is there; one inside the request before it is decoded.
        `taken`: the modalities of the model. Raises `APIError`.
        """
        possible: Sequence[FileKind] = (
            (*taken, "document") if reference.modality is None else (reference.modality,)
        )
        limit = max(self._max_bytes[modality] for modality in possible)
        least = least_bytes(reference.data)
        least = least if least <= limit else 0  # it will not be decoded
        files.take(least)
        try:
            content = await self._content(reference, limit, read_file)
            kind: FileKind = (
                reference.modality
                if reference.modality is not None
                else await asyncio.to_thread(kind_of, content, taken)
            )
            reference.modality = kind
            if len(content) > self._max_bytes[kind]:
                raise too_large(self._max_bytes[kind])
            if kind != "document":
                check_type(content, kind)
        except MediaError as error:
            raise refused(reference.path, reference.modality or possible[0], error) from error
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
        file = _file(reference)
        if file is not None and file.file_id is not None:
            async with self._reads:
                content, name = await read_file(file.file_id, max_bytes)
            file.filename = file.filename or name
            return content
        if url is None or reference.data:
            return await asyncio.to_thread(read_inline, reference.data, max_bytes)
        return await self._fetcher.fetch(url, max_bytes)

    def close(self) -> None:
        """Fetch no more."""
        self._fetcher.close()


def _file(reference: MediaReference) -> FileReference | None:
    """What a `file` part says of its file. Raises `APIError` 400 if it has not one place for it."""
    if not isinstance(reference.part, FilePart):
        return None
    file = reference.part.file
    if sum(map(bool, (file.file_id is not None, file.file_data, file.file_url))) != 1:
        message = f"'{reference.path}': a file has either a file_id, file_data or a file_url."
        raise invalid(reference.path, message)
    return file
