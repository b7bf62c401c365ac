"""Reads the files of images and audio: out of the request, from hosts that may be asked, by id."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from stonechat_server.errors import APIError, unsupported
from stonechat_server.media.budget import Share
from stonechat_server.media.data_urls import is_data_url, least_bytes, read_base64, read_data_url
from stonechat_server.media.errors import MediaError, refused, too_large
from stonechat_server.media.fetch import Client, Fetcher
from stonechat_server.media.file_types import READ, audio_format, check_type, image_type
from stonechat_server.media.references import MediaReference
from stonechat_server.schema.messages import FilePart

if TYPE_CHECKING:
    from stonechat_models import Modality
    from stonechat_server.settings import Settings

MAX_READS = 4
"""Files by id that are read at the same time, of all requests."""

ReadFile = Callable[[str, int], Awaitable[bytes]]
"""The content of a file of the client, by its id, of at most so many bytes. Raises `APIError`, and
`MediaError` for a file that is too large."""


class MediaReader:
    """Reads files within the bounds of the settings. `client` fetches them: see `Fetcher`."""

    def __init__(self, settings: "Settings", client: Client | None = None) -> None:
        self._max_bytes: Mapping[Modality, int] = {
            "image": int(settings.max_image_size),
            "audio": int(settings.max_audio_size),
        }
        self._fetcher = Fetcher(
            settings.allow_image_urls, timeout=settings.image_fetch_timeout, client=client
        )
        self._reads = asyncio.Semaphore(MAX_READS)

    async def read(
        self,
        reference: MediaReference,
        taken: "Sequence[Modality]",
        read_file: ReadFile,
        files: Share,
    ) -> bytes:
        """The file of an image or audio; the reference then has its modality.

        The file counts in `files` when it is there; one inside the request before it is decoded.
        `taken`: the modalities of the model. Raises `APIError`.
        """
        likely = reference.modality or taken[0]
        least = least_bytes(reference.data)
        least = least if least <= self._max_bytes[likely] else 0  # it will not be decoded
        files.take(least)
        try:
            if isinstance(reference.part, FilePart):
                content = await self._read_stored(reference, taken, read_file)
            else:
                content = await self._read_given(reference, likely)
        except MediaError as error:
            raise refused(reference.path, reference.modality or likely, error) from error
        except APIError as error:
            error.param = reference.path
            raise
        files.take(len(content) - least)
        return content

    async def _read_given(self, reference: MediaReference, modality: "Modality") -> bytes:
        """The file that the request has, or names by a URL."""
        url, limit = reference.url, self._max_bytes[modality]
        if reference.content is not None:
            content = reference.content
        elif url is None:
            return await asyncio.to_thread(read_base64, reference.data, modality, limit)
        elif is_data_url(url):
            return await asyncio.to_thread(read_data_url, url, modality, limit)
        else:
            content = await self._fetcher.fetch(url, limit)
        _check(content, modality, limit)
        return content

    async def _read_stored(
        self, reference: MediaReference, taken: "Sequence[Modality]", read_file: ReadFile
    ) -> bytes:
        """The file that the request names by its id."""
        possible = taken if reference.modality is None else (reference.modality,)
        async with self._reads:
            limit = max(self._max_bytes[modality] for modality in possible)
            content = await read_file(_file_id(reference), limit)
        if reference.modality is None:
            reference.modality = _modality_of(content, taken)
        _check(content, reference.modality, self._max_bytes[reference.modality])
        return content

    def close(self) -> None:
        """Fetch no more."""
        self._fetcher.close()


def _check(content: bytes, modality: "Modality", max_bytes: int) -> None:
    if len(content) > max_bytes:
        raise too_large(max_bytes)
    check_type(content, modality)


def _modality_of(content: bytes, taken: "Sequence[Modality]") -> "Modality":
    """What a file is, if the model takes it; else what the model takes."""
    is_image, is_audio = image_type(content) is not None, audio_format(content) is not None
    if len(taken) == 1:
        return taken[0]
    if content and not (is_image or is_audio):
        raise MediaError(f"is not {READ['image']}, and not {READ['audio']}", "format")
    return "audio" if is_audio else "image"


def _file_id(reference: MediaReference) -> str:
    assert isinstance(reference.part, FilePart)
    file_id = reference.part.file.file_id
    if file_id is None:
        raise unsupported(
            reference.path,
            f"'{reference.path}': files in a request are not read. Images go into an image_url "
            "part, audio into an input_audio part, or both to /v1/files with the purpose "
            "user_data.",
        )
    return file_id
