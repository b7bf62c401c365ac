"""Images inside a request: `data:` URLs, and base64 with a media type beside it."""

import binascii

from stonechat_server.images.errors import ImageError, UrlError, too_large

PREFIX = "data:"
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_OTHER_NAMES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
_UNKNOWN = frozenset({"", "application/octet-stream"})
"""Media types that say nothing. Without one, a `data:` URL would be text."""
PIECE = 2**20
"""Characters that are decoded at a time; a multiple of 4."""
MAX_HEAD_LENGTH = 200
TYPES_TEXT = "PNG, JPEG, WebP or GIF"


def is_data_url(url: str) -> bool:
    """Whether the URL itself has the data of an image."""
    return url[: len(PREFIX)].lower() == PREFIX


def read_data_url(url: str, max_bytes: int) -> bytes:
    """The bytes of an image in a URL `data:image/png;base64,...`. Raises `ImageError`."""
    head, comma, data = url.partition(",")
    if len(head) > MAX_HEAD_LENGTH:
        raise UrlError(
            f"is a data: URL with more than {MAX_HEAD_LENGTH} characters before its comma: write "
            "data:image/png;base64,..."
        )
    media_type, *parameters = head[len(PREFIX) :].lower().split(";")
    if not comma or "base64" not in parameters:
        raise UrlError("is a data: URL without base64: write data:image/png;base64,...")
    return read_base64(data, media_type.strip(), max_bytes)


def read_base64(data: str, media_type: str, max_bytes: int) -> bytes:
    """The bytes of an image that is said to be of a media type. Raises `ImageError`."""
    if len(data) // 4 * 3 > max_bytes + 2:
        raise too_large(max_bytes)
    content = _decoded(data)
    if len(content) > max_bytes:
        raise too_large(max_bytes)
    check_type(content, media_type)
    return content


def _decoded(data: str) -> bytes:
    """Decode strictly, in pieces: each keeps other threads waiting, the event loop's too."""
    if data.find("=", 0, -2) >= 0:
        raise ImageError("is not valid base64", "invalid_base64_image")
    try:
        return b"".join(
            binascii.a2b_base64(data[i : i + PIECE], strict_mode=True)
            for i in range(0, len(data), PIECE)
        )
    except ValueError:  # also for characters beyond ASCII
        raise ImageError("is not valid base64", "invalid_base64_image") from None


def check_type(content: bytes, media_type: str = "") -> None:
    """Raise `ImageError` for a file that is no image, or of another type than `media_type` says."""
    if not content:
        raise ImageError("is empty", "empty_image_file")
    said = _OTHER_NAMES.get(media_type, media_type)
    found = type_of(content)
    if found is None or (said not in MEDIA_TYPES and said not in _UNKNOWN):
        raise ImageError(f"is not a {TYPES_TEXT} file", "unsupported_image_media_type")
    if said not in _UNKNOWN and said != found:
        wrong = f"is {found}, and not {media_type[:40]} as the request says"
        raise ImageError(wrong, "unsupported_image_media_type")


def type_of(content: bytes) -> str | None:
    """The media type that the first bytes of a file show; None if it is none of `MEDIA_TYPES`."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return "image/gif" if content[:6] in (b"GIF87a", b"GIF89a") else None
