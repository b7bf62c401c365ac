"""Turns the documents of a request into texts, and into images of their pages.

The image of a page stands behind its text (`document_text`).
"""

import asyncio
from collections.abc import Sequence
from typing import cast

from stonechat_models import Document, DocumentOptions, DocumentProcessor, document_refusal
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.errors import unsupported
from stonechat_server.media.budget import Share
from stonechat_server.media.document_text import end_of, head_of, page_of, written_text
from stonechat_server.media.errors import MediaError, refused, too_many
from stonechat_server.media.file_types import is_pdf, text_in
from stonechat_server.media.processing import processed
from stonechat_server.media.references import MediaReference
from stonechat_server.schema.messages import (
    DocumentText,
    FilePart,
    FileReference,
    ImageFilePart,
    SourcePart,
    TextPart,
)
from stonechat_server.settings import Settings

CHARACTER_BYTES = 4
"""Bytes of a character at most, in each encoding that is read."""
Contents = list[TextPart | SourcePart]
Page = tuple[MediaReference, bytes]
"""An image of a page, and its file."""


class DocumentReader:
    """Reads documents within the bounds of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._processor = DocumentProcessor()

    async def read(
        self,
        references: Sequence[MediaReference],
        contents: Sequence[bytes],
        engine: EngineLike,
        files: Share,
    ) -> list[Page]:
        """Give each document its contents, and return the images in them, which must be prepared.

        Raises `APIError` 400 that names the part.
        """
        pages: list[Page] = []
        num_images = sum(reference.modality == "image" for reference in references)
        num_characters = 0
        for reference, content in zip(references, contents, strict=True):
            if reference.modality != "document":
                continue
            try:
                parts = await self._read(reference, content, engine, files, pages)
                num_characters += num_characters_of(parts)
                if num_characters > self._settings.max_document_characters:
                    raise self._too_long()
            except MediaError as error:
                raise refused(reference.path, "document", error) from error
            cast(FilePart, reference.part).set_contents(parts)
            if num_images + len(pages) > self._settings.max_images:
                raise too_many(num_images + len(pages), self._settings.max_images, "image")
        return pages

    async def _read(
        self,
        reference: MediaReference,
        content: bytes,
        engine: EngineLike,
        files: Share,
        pages: list[Page],
    ) -> Contents:
        name = cast(FilePart, reference.part).file.filename
        if not await asyncio.to_thread(is_pdf, content):
            if len(content) > CHARACTER_BYTES * self._settings.max_document_characters:
                raise self._too_long()
            text = await asyncio.to_thread(text_in, content)
            return [_text_part(written_text(name, text) + "\n")]
        if refusal := document_refusal():
            raise unsupported(reference.path, f"'{reference.path}': {refusal}")
        options = self._options(reference, engine)
        document = await processed(self._processor, reference, content, options, files)
        if not any(page.text or page.image for page in document.pages):
            raise MediaError(_without_text(engine), "no_text")
        files.take_made(sum(len(page.image) for page in document.pages))
        return _contents(reference, name, document, pages)

    def _too_long(self) -> MediaError:
        most = self._settings.max_document_characters
        reason = f"has, with those before it, more than {most} characters"
        return MediaError(reason, "too_many_characters")

    def _options(self, reference: MediaReference, engine: EngineLike) -> DocumentOptions:
        settings = self._settings
        has_all = reference.detail == "high" or settings.document_images == "all"
        return DocumentOptions(
            max_pages=settings.max_document_pages,
            max_characters=settings.max_document_characters,
            images="none" if engine.model.images is None else "all" if has_all else "missing",
            max_images=settings.max_images,
            max_pixels=min(settings.document_image_pixels, settings.max_image_pixels),
        )

    def close(self) -> None:
        """End the processes."""
        self._processor.close()


def num_characters_of(parts: Contents) -> int:
    """How many characters the texts of a document have."""
    return sum(len(part.text) for part in parts if isinstance(part, TextPart))


def _contents(
    reference: MediaReference, name: str | None, document: Document, pages: list[Page]
) -> Contents:
    """The texts of a document and the images between them. These are added to `pages`."""
    text = head_of(name, len(document.pages)) + "\n"
    parts: Contents = []
    for i, page in enumerate(document.pages, 1):
        text += page_of(i, is_empty=not page.text and not page.image) + "\n"
        text += f"{page.text}\n" if page.text else ""
        if page.image:
            part = ImageFilePart(type="file", file=FileReference())
            pages.append((MediaReference(reference.path, part, "image"), page.image))
            parts += [_text_part(text), part]
            text = "\n"
    return [*parts, _text_part(f"{text}{end_of(name)}\n")]


def _text_part(text: str) -> TextPart:
    return DocumentText(type="text", text=text)


def _without_text(engine: EngineLike) -> str:
    if engine.model.images is None:
        return "has no text, only images of pages or nothing, and this model takes no images"
    return "has nothing on its pages"
