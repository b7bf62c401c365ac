"""Files inside a request: `data:` URLs, and base64 alone."""

import binascii
import re

from stonechat_server.media.errors import MediaError, UrlError, too_large

PREFIX = "data:"
PIECE = 2**20
"""Characters that are decoded at a time; a multiple of 4."""
MAX_HEAD_LENGTH = 200
EXAMPLE = "data:image/png;base64,..., data:audio/wav;base64,... or data:video/mp4;base64,..."
_BARE = re.compile(r"[A-Za-z0-9+/]{64}")
"""How base64 begins that stands in the place of a URL. No URL begins so: it has a colon earlier."""

_PERCENT = {"%2B": "+", "%2F": "/", "%3D": "=", "%0D": "", "%0A": "", "%20": ""}
_OTHER_LETTERS = str.maketrans("-_", "+/", "\n\r\t ")
"""Letters of base64 for URLs, and what stands between lines."""


def is_data_url(url: str) -> bool:
    """Whether the URL itself has the data of a file."""
    return url[: len(PREFIX)].lower() == PREFIX


def holds_file(url: str) -> bool:
    """Whether what should be a URL is a `data:` URL, or base64 alone."""
    return is_data_url(url) or _BARE.match(url) is not None


def read_inline(data: str, max_bytes: int) -> bytes:
    """The file in a URL `data:image/png;base64,...`, or in base64 alone. Raises `MediaError`.

    The media type does not count: what the file holds does.
    """
    if is_data_url(data):
        head, comma, data = data.partition(",")
        if len(head) > MAX_HEAD_LENGTH:
            raise UrlError(
                f"is a data: URL with more than {MAX_HEAD_LENGTH} characters before its comma: "
                f"write {EXAMPLE}"
            )
        parameters = head[len(PREFIX) :].lower().replace(" ", "").split(";")[1:]
        if not comma or "base64" not in parameters:
            raise UrlError(f"is a data: URL without base64: write {EXAMPLE}")
    data = _tidied(data)
    if len(data) // 4 * 3 > max_bytes + 2:
        raise too_large(max_bytes)
    content = _decoded(data)
    if len(content) > max_bytes:
        raise too_large(max_bytes)
    return content


def _tidied(data: str) -> str:
    """Base64 without line breaks, percent signs and the letters of URLs, and with its padding.

    Programs write it in all of these ways. None takes more memory than the text has.
    """
    if not data.isascii():
        raise MediaError("is not valid base64", "base64")
    if "%" in data:
        for code, letter in _PERCENT.items():
            data = data.replace(code, letter).replace(code.lower(), letter)
    if any(chr(letter) in data for letter in _OTHER_LETTERS):
        data = data.translate(_OTHER_LETTERS)
    return data + "=" * (-len(data) % 4)


def _decoded(data: str) -> bytes:
    """Decode strictly, in pieces: each keeps other threads waiting, the event loop's too."""
    if data.find("=", 0, -2) >= 0:
        raise MediaError("is not valid base64", "base64")
    try:
        return b"".join(
            binascii.a2b_base64(data[i : i + PIECE], strict_mode=True)
            for i in range(0, len(data), PIECE)
        )
    except ValueError:
        raise MediaError("is not valid base64", "base64") from None


def least_bytes(data: str) -> int:
    """How many bytes base64 has at least, alone or in a `data:` URL, unless it has line breaks.
    Padding stands for two at most."""
    start = data.find(",") + 1 if is_data_url(data) else 0
    return max(0, (len(data) - start) // 4 * 3 - 2)
