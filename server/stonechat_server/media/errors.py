"""What can be wrong with the images, the audio, the videos and the documents of a request.

The codes of images are those that OpenAI publishes. It publishes none of others.
"""

from collections.abc import Mapping
from typing import Literal

from stonechat_models import InvalidMediaError, Modality, size_text
from stonechat_server.errors import APIError, invalid
from stonechat_server.prompt.media import counted

Kind = Literal[
    "url",
    "download",
    "base64",
    "empty",
    "format",
    "file_too_large",
    "too_many_characters",
    "no_text",
]
FileKind = Modality | Literal["document"]
"""What a file is."""
CODES: Mapping[FileKind, Mapping[str, str]] = {
    "image": {
        "url": "invalid_image_url",
        "download": "failed_to_download_image",
        "base64": "invalid_base64_image",
        "empty": "empty_image_file",
        "format": "unsupported_image_media_type",
        "broken": "image_parse_error",
        "file_too_large": "image_file_too_large",
        "too_large": "image_too_large",
    },
    "audio": {
        "url": "invalid_audio_url",
        "download": "failed_to_download_audio",
        "base64": "invalid_base64_audio",
        "empty": "empty_audio_file",
        "format": "unsupported_audio_format",
        "broken": "audio_parse_error",
        "file_too_large": "audio_file_too_large",
        "too_large": "audio_too_large",
        "too_long": "audio_too_long",
    },
    "video": {
        "url": "invalid_video_url",
        "download": "failed_to_download_video",
        "base64": "invalid_base64_video",
        "empty": "empty_video_file",
        "format": "unsupported_video_format",
        "broken": "video_parse_error",
        "file_too_large": "video_file_too_large",
        "too_large": "video_too_large",
        "too_long": "video_too_long",
    },
    "document": {
        "url": "invalid_document_url",
        "download": "failed_to_download_document",
        "base64": "invalid_base64_document",
        "empty": "empty_document_file",
        "format": "unsupported_document_format",
        "broken": "document_parse_error",
        "encrypted": "document_encrypted",
        "file_too_large": "document_file_too_large",
        "too_large": "document_too_large",
        "too_many_pages": "document_too_long",
        "too_many_characters": "document_too_long",
        "too_many_images": "too_many_images",
        "no_text": "document_without_text",
    },
}
"""The code of the error for each kind of `MediaError` and `InvalidMediaError`. For others, it is
`invalid_image`, `invalid_audio` or `invalid_video`."""
LIMITS = {
    "file_too_large": "--max-{}-size",
    "too_many_pages": "--max-document-pages",
    "too_many_characters": "--max-document-characters",
    "too_many_images": "--max-images",
}
"""The settings whose limits errors are about, by the kind of error."""


class MediaError(Exception):
    """The message goes on from "the image", "the document" and the like."""

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind = kind


class FetchError(MediaError):
    """A file could not be fetched."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "download")


class UrlError(MediaError):
    """A URL leads to no file, or may not be fetched. The message goes on from "the URL"."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "url")


def too_large(limit: int) -> MediaError:
    """The error for a file beyond `--max-image-size`, or that of another kind of file."""
    return MediaError(f"has more than {size_text(limit)}", "file_too_large")


# --- the answers ---


def refused(path: str, modality: FileKind, error: MediaError | InvalidMediaError) -> APIError:
    """400: the image, audio, video or document at `path` cannot be read, or not be prepared."""
    reason = error.reason if isinstance(error, InvalidMediaError) else str(error)
    if error.kind in LIMITS:
        reason += f", the limit that the server's {LIMITS[error.kind].format(modality)} sets"
    what = "URL" if isinstance(error, UrlError) else modality
    code = CODES[modality].get(error.kind, f"invalid_{modality}")
    return invalid(path, f"'{path}': the {what} {reason}.", code)


def too_many(number: int, limit: int, modality: FileKind) -> APIError:
    """400: a request has more images than `--max-images`, or more of another kind."""
    name = "documents" if modality == "document" else counted(modality)
    message = (
        f"There are {number} {name}, and at most {limit} are allowed: the server's "
        f"--max-{name.replace(' ', '-')} sets the limit."
    )
    return invalid("messages", message, f"too_many_{name.replace(' ', '_')}")


def too_large_together(limit: int) -> APIError:
    """400: the files of a request are beyond `--max-images-size`."""
    message = (
        f"The images, audio, videos and files have more than {size_text(limit)} together, the "
        "limit that the server's --max-images-size sets."
    )
    return invalid("messages", message, "image_file_too_large")


def too_much_memory(limit: int) -> APIError:
    """400: the prepared images, audio and videos of a request are beyond `--image-memory`."""
    message = (
        f"The images, audio and videos need more than {size_text(limit)} of memory together once "
        "they are prepared, the limit that the server's --image-memory sets. Send fewer or smaller "
        "ones."
    )
    return invalid("messages", message, "image_too_large")
