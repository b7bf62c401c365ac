"""What the server hands to the processors of files, and gets back. Nothing here imports tensors."""

import hashlib
from collections.abc import Mapping
from sys import getsizeof
from typing import Literal

import msgspec

from stonechat_models.types import MediaInput, MediaTensor, Modality

DEFAULT_MAX_PIXELS = 50_000_000
DEFAULT_MAX_SECONDS = 600.0
DEFAULT_MAX_FRAMES = 32


class UnusableMediaError(Exception):
    """`reason` reads behind "the image " and the like. `kind` is as in `InvalidMediaError`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


def too_long(max_seconds: float) -> UnusableMediaError:
    """Return the error for a clip that has more seconds."""
    return UnusableMediaError("too_long", f"is longer than the limit of {max_seconds:g} seconds")


class ImageOptions(msgspec.Struct, frozen=True, tag="image"):
    """How an image is prepared."""

    detail: Literal["auto", "low", "high"] = "auto"
    """`low` scales the image down to at most 512 x 512 pixels. The others leave it to the model."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """A file with more pixels is refused before it is decoded."""
    among_others: bool = False
    """Whether its prompt has other images, too. LLaVA-OneVision then cuts it into no tiles."""


class AudioOptions(msgspec.Struct, frozen=True, tag="audio"):
    """How an audio clip is prepared."""

    max_seconds: float = DEFAULT_MAX_SECONDS
    """A longer file is refused. No more of it is decoded."""


class VideoOptions(msgspec.Struct, frozen=True, tag="video"):
    """How a video is prepared."""

    max_frames: int = DEFAULT_MAX_FRAMES
    """No more frames are taken. The model may take fewer."""
    max_seconds: float = DEFAULT_MAX_SECONDS
    """A longer file is refused before it is decoded."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """A file with frames of more pixels is refused before it is decoded."""
    max_tokens: int | None = None
    """A video that would become more placeholder tokens is refused before it is decoded."""


class DocumentOptions(msgspec.Struct, frozen=True, kw_only=True, tag="document"):
    """How a PDF file is read."""

    max_pages: int
    """A file with more pages is refused before they are read."""
    max_characters: int
    """A file with more text is refused. No more of it is read."""
    images: Literal["none", "missing", "all"] = "none"
    """Which pages also become images: none, those without text, or all."""
    max_images: int = 0
    """A file of which more pages would become images is refused."""
    max_pixels: int
    """Width times height of the image of a page, at most."""


MediaOptions = ImageOptions | AudioOptions | VideoOptions
FileOptions = MediaOptions | DocumentOptions
"""Their type says what the file is."""


def kind_of(options: FileOptions) -> str:
    """Return what a file with these options is: a modality, or `document`."""
    return str(options.__struct_config__.tag)


class MediaPiece(msgspec.Struct, frozen=True):
    """An image, a clip, or a piece of a clip or a video that the tower encodes alone."""

    num_tokens: int
    """How many of the placeholders it takes the place of."""
    tensors: Mapping[str, MediaTensor]
    """The arguments of the model's `get_image_features` by name; of a clip, those of `forward`."""


class PreparedMedia(msgspec.Struct, frozen=True, kw_only=True, tag="media"):
    """An image, an audio clip or a video as the model takes it."""

    modality: Modality
    content_hash: bytes
    """16 bytes, of the file, the modality, `detail`, `max_frames` and the processor's settings.
    Other limits do not count: a file that was prepared under one is found again under another."""
    placeholder: str
    """The text that the chat template writes. It is the same for all of a modality."""
    text: str
    """What takes the place of the placeholder in the prompt's text."""
    number_marks: tuple[str, str] | None = None
    """If a prompt numbers its images: what stands around the number, before the text."""
    num_tokens: int
    """How many placeholder tokens (`ModelInfo.media_token_ids`) the text becomes."""
    pieces: tuple[MediaPiece, ...]
    """One, or those of a long clip or a video in order."""
    width: int = 0
    """Pixels of an image file, turned upright."""
    height: int = 0
    seconds: float = 0.0
    """The length of a clip or a video."""

    @property
    def num_bytes(self) -> int:
        """Of the tensors."""
        return sum(len(tensor.data) for piece in self.pieces for tensor in piece.tensors.values())

    def text_of(self, number: int) -> str:
        """Return the text of this medium as the prompt's `number`-th of its modality, from 0."""
        if self.number_marks is None:
            return self.text
        start, end = self.number_marks
        return f"{start}{number}{end}{self.text}"

    def placed(self, places: tuple[tuple[int, int], ...], piece: int = 0) -> MediaInput:
        """Return the medium of a request in whose prompt a piece has these runs of placeholders."""
        content = self.content_hash
        if piece:
            content = hashlib.blake2b(content + piece.to_bytes(8), digest_size=16).digest()
        return MediaInput(content, places, self.pieces[piece].tensors, self.modality)


class Page(msgspec.Struct, frozen=True):
    """A page of a document."""

    text: str
    """Without control characters but newlines and tabs; without space around it."""
    image: bytes = b""
    """The page as a JPEG file; empty if it did not become an image, or if nothing is on it."""


class Document(msgspec.Struct, frozen=True, tag="document"):
    """What is read of a PDF file."""

    pages: tuple[Page, ...]

    @property
    def num_bytes(self) -> int:
        """About as many as it takes, also if its pages have no text."""
        return sum(getsizeof(page.text) + getsizeof(page.image) for page in self.pages)


class Task(msgspec.Struct, frozen=True):
    """A file to prepare. `content_hash` comes back with the result."""

    data: bytes
    options: FileOptions
    content_hash: bytes


class Answer(msgspec.Struct, frozen=True):
    """What was made of the file; or what is wrong with it; or why none can be prepared."""

    prepared: PreparedMedia | Document | None = None
    kind: str = ""
    reason: str = ""
    failure: str = ""
