"""Images, audio and PDF files of a question, as parts of a message."""

import base64
import os.path
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from stonechat_models import size_text
from stonechat_server.media.file_types import READ, audio_format, image_type

if TYPE_CHECKING:
    from stonechat_models import Modality

MAX_BYTES: "Mapping[Modality, int]" = {"image": 20 << 20, "audio": 25 << 20}
"""The defaults of `--max-image-size` and `--max-audio-size`. A larger file is not sent."""

Part = dict[str, Any]


class MediaError(ValueError):
    """A file cannot be sent as an image or as audio; the message says why."""


def media_part(path: Path, modality: "Modality") -> Part:
    """The part of a message for a file of an image or of audio. Raises `MediaError`."""
    limit = MAX_BYTES[modality]
    try:
        size = path.stat().st_size
        if size > limit:
            raise MediaError(
                f"{path} is too large: it has {size_text(size)}, and {size_text(limit)} is the "
                "most that can be sent"
            )
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MediaError(f"cannot read {path}: {reason}") from error
    kind = image_type(data) if modality == "image" else audio_format(data)
    if kind is None:
        raise MediaError(f"{path} is not {READ[modality]}")
    text = base64.b64encode(data).decode()
    if modality == "audio":
        return {"type": "input_audio", "input_audio": {"data": text, "format": kind}}
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{text}"}}


def file_part(name: str, data: bytes) -> Part:
    """The part of a message for a PDF file."""
    text = base64.b64encode(data).decode()
    file = {"filename": name, "file_data": f"data:application/pdf;base64,{text}"}
    return {"type": "file", "file": file}


def read_media(text: str, modality: "Modality") -> tuple[list[Part], str]:
    """The parts for the files that a typed text names, and their names for people.

    Paths may be quoted, have backslashes, or be `file:` URLs. Raises `MediaError`.
    """
    paths = _paths(text)
    return [media_part(path, modality) for path in paths], ", ".join(path.name for path in paths)


def modality_of(part: Part) -> "Modality | None":
    """What a part is; None for a PDF file."""
    kinds: dict[str, Modality] = {"input_audio": "audio", "image_url": "image"}
    return kinds.get(part["type"])


def names_file(text: str) -> bool:
    """Whether a text consists of the paths of files."""
    try:
        return all(os.path.isfile(path) for path in _paths(text))
    except MediaError:
        return False


def _paths(text: str) -> list[Path]:
    whole = _path(text)
    if os.path.isfile(whole):  # whatever spaces it has
        return [whole]
    try:
        return [_path(word) for word in shlex.split(text)]
    except ValueError as error:
        raise MediaError(str(error).lower()) from error


def _path(word: str) -> Path:
    if word.startswith("file://"):
        return Path(unquote(urlsplit(word).path))
    return Path(os.path.expanduser(word))


def shown_content(content: object) -> str:
    """The text of a message, with a mark for each image, audio clip and file."""
    if not isinstance(content, list):
        return str(content)
    return "\n".join(_shown_part(part) for part in content if isinstance(part, Mapping))


def _shown_part(part: Mapping[str, Any]) -> str:
    match part.get("type"):
        case "image_url":
            kind, _, data = str(part["image_url"]["url"]).partition(";base64,")
        case "file":
            kind, _, data = str(part["file"].get("file_data")).partition(";base64,")
        case "input_audio":
            kind, data = f"audio/{part['input_audio']['format']}", part["input_audio"]["data"]
        case _:
            return str(part.get("text", ""))
    return f"[{kind.removeprefix('data:')}, {size_text(len(data.rstrip('=')) * 3 // 4)}]"
