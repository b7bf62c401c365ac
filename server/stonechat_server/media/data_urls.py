"""Files inside a request: `data:` URLs, and base64 alone."""

import binascii
from typing import TYPE_CHECKING

from stonechat_server.media.errors import MediaError, UrlError, too_large
from stonechat_server.media.file_types import check_type

if TYPE_CHECKING:
    from stonechat_models import Modality

PREFIX = "data:"
PIECE = 2**20
"""Characters that are decoded at a time; a multiple of 4."""
MAX_HEAD_LENGTH = 200
EXAMPLE = "data:image/png;base64,... or data:audio/wav;base64,..."


def is_data_url(url: str) -> bool:
    """Whether the URL itself has the data of a file."""
    return url[: len(PREFIX)].lower() == PREFIX


def read_data_url(url: str, modality: "Modality", max_bytes: int) -> bytes:
    """The file in a URL `data:image/png;base64,...`. Raises `MediaError`."""
    head, comma, data = url.partition(",")
    if len(head) > MAX_HEAD_LENGTH:
        raise UrlError(
            f"is a data: URL with more than {MAX_HEAD_LENGTH} characters before its comma: write "
            f"{EXAMPLE}"
        )
    media_type, *parameters = head[len(PREFIX) :].lower().split(";")
    if not comma or "base64" not in parameters:
        raise UrlError(f"is a data: URL without base64: write {EXAMPLE}")
    return read_base64(data, modality, max_bytes, media_type.strip())


def read_base64(data: str, modality: "Modality", max_bytes: int, media_type: str = "") -> bytes:
    """A file, which is perhaps said to be of a media type. Raises `MediaError`."""
    if len(data) // 4 * 3 > max_bytes + 2:
        raise too_large(max_bytes)
    content = _decoded(data)
    if len(content) > max_bytes:
        raise too_large(max_bytes)
    check_type(content, modality, media_type)
    return content


def _decoded(data: str) -> bytes:
    """Decode strictly, in pieces: each keeps other threads waiting, the event loop's too."""
    if data.find("=", 0, -2) >= 0:
        raise MediaError("is not valid base64", "base64")
    try:
        return b"".join(
            binascii.a2b_base64(data[i : i + PIECE], strict_mode=True)
            for i in range(0, len(data), PIECE)
        )
    except ValueError:  # also for characters beyond ASCII
        raise MediaError("is not valid base64", "base64") from None


def least_bytes(data: str) -> int:
    """How many bytes base64 has at least, alone or in a `data:` URL. Padding stands for two at
    most."""
    start = data.find(",") + 1 if is_data_url(data) else 0
    return max(0, (len(data) - start) // 4 * 3 - 2)
