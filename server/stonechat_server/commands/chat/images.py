"""Images of a question: read from files, as parts of a message with `data:` URLs."""

import base64
import os.path
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from stonechat_models import size_text

MAX_BYTES = 20 << 20
"""The default of `--max-image-size`. A larger file is refused before it is sent."""

ImagePart = dict[str, Any]


class ImageError(ValueError):
    """A file cannot be sent as an image; the message says why."""


def image_part(path: Path) -> ImagePart:
    """The part of a message for a PNG, JPEG, WebP or GIF file. Raises `ImageError`."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ImageError(
                f"{path} is too large: it has {size_text(size)}, and {size_text(MAX_BYTES)} is the "
                "most that can be sent"
            )
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ImageError(f"cannot read {path}: {reason}") from error
    kind = _kind(data)
    if kind is None:
        raise ImageError(f"{path} is not a PNG, JPEG, WebP or GIF file")
    text = base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{text}"}}


def _kind(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def read_images(text: str) -> tuple[list[ImagePart], str]:
    """The parts for the image files that a typed text names, and their names for people.

    Paths may be quoted, have backslashes, or be `file:` URLs. Raises `ImageError`.
    """
    paths = _paths(text)
    return [image_part(path) for path in paths], ", ".join(path.name for path in paths)


def names_file(text: str) -> bool:
    """Whether a text consists of the paths of files."""
    try:
        return all(os.path.isfile(path) for path in _paths(text))
    except ImageError:
        return False


def _paths(text: str) -> list[Path]:
    whole = _path(text)
    if os.path.isfile(whole):  # whatever spaces it has
        return [whole]
    try:
        return [_path(word) for word in shlex.split(text)]
    except ValueError as error:
        raise ImageError(str(error).lower()) from error


def _path(word: str) -> Path:
    if word.startswith("file://"):
        return Path(unquote(urlsplit(word).path))
    return Path(os.path.expanduser(word))


def shown_content(content: object) -> str:
    """The text of a message, with a mark for each image."""
    if not isinstance(content, list):
        return str(content)
    return "\n".join(_shown_part(part) for part in content if isinstance(part, Mapping))


def _shown_part(part: Mapping[str, Any]) -> str:
    if part.get("type") != "image_url":
        return str(part.get("text", ""))
    kind, _, data = str(part["image_url"]["url"]).partition(";base64,")
    return f"[{kind.removeprefix('data:')}, {size_text(len(data.rstrip('=')) * 3 // 4)}]"
