"""What the first bytes of a file say that it holds."""

import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping, Sequence

from stonechat_models import Modality
from stonechat_server.media.errors import FileKind, MediaError

READ: Mapping[Modality, str] = {
    "image": "a PNG, JPEG, WebP or GIF file",
    "audio": "a WAV, MP3, FLAC or Ogg file",
    "video": "an MP4, MOV, WebM or Matroska file",
}
PDF_MARK = b"%PDF-"
PDF_MARK_BYTES = 1024
"""How much of a file may stand before the end of the mark."""
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
PIECE = 2**20
"""Bytes that are looked at together: each piece keeps other threads waiting."""
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""No text has these; files of other kinds do."""
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")


def image_type(content: bytes) -> str | None:
    """The media type of an image, one of `IMAGE_TYPES`; None if it is none."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return "image/gif" if content[:6] in (b"GIF87a", b"GIF89a") else None


def audio_format(content: bytes) -> str | None:
    """The format of audio; None if it is none that is read."""
    if content[:4] in (b"RIFF", b"RF64") and content[8:12] == b"WAVE":
        return "wav"
    if content[:4] == b"fLaC":
        return "flac"
    if content[:4] == b"OggS":
        return "ogg"
    # The header of an MPEG frame: 11 set bits, and a layer that is not the reserved one, which AAC
    # has.
    is_frame = content[:1] == b"\xff" and content[1:2] >= b"\xe0" and bool(content[1] & 6)
    return "mp3" if is_frame or content[:3] == b"ID3" else None


def video_format(content: bytes) -> str | None:
    """The format of a video; None if it is none that is read."""
    if content[4:8] == b"ftyp":
        return "mp4"
    return "webm" if content[:4] == b"\x1aE\xdf\xa3" else None


FORMATS: Mapping[Modality, Callable[[bytes], str | None]] = {
    "image": image_type,
    "audio": audio_format,
    "video": video_format,
}


def check_type(content: bytes, modality: Modality) -> None:
    """Raise `MediaError` for a file that is of another modality, or of none."""
    check_not_empty(content)
    if FORMATS[modality](content) is None:
        what = "a PDF file, which is a document: it is " if _begins_as_pdf(content) else ""
        raise MediaError(f"is {what}not {READ[modality]}", "format")


def check_not_empty(content: bytes) -> None:
    """Raise `MediaError` for an empty file."""
    if not content:
        raise MediaError("is empty", "empty")


def kind_of(content: bytes, taken: Sequence[Modality]) -> FileKind:
    """What a file is. Raises `MediaError` for what is not read; its text names `taken`."""
    check_not_empty(content)
    if is_text(content):
        return "document"
    for modality, format_of in FORMATS.items():
        if format_of(content) is not None:
            return modality
    if is_pdf(content):
        return "document"
    others = "".join(f"not {READ[modality]}, " for modality in taken)
    raise MediaError(f"is {others}not a PDF file, and not a text in UTF-8", "format")


def is_pdf(content: bytes) -> bool:
    """Whether a file is a PDF file. If it is no text, other bytes may stand before its mark."""
    if _begins_as_pdf(content):
        return True
    return PDF_MARK in content[:PDF_MARK_BYTES] and not is_text(content)


def _begins_as_pdf(content: bytes) -> bool:
    return content[:PDF_MARK_BYTES].lstrip().startswith(PDF_MARK)


def is_text(content: bytes) -> bool:
    """Whether a file is a text in UTF-8, or in UTF-16 with its mark."""
    decoder = getincrementaldecoder(_encoding(content))()
    try:
        for start in range(0, len(content), PIECE):
            if _CONTROL.search(decoder.decode(content[start : start + PIECE])):
                return False
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def text_in(content: bytes) -> str:
    """The text of a file that is a text."""
    return content.decode(_encoding(content))


def _encoding(content: bytes) -> str:
    return "utf-16" if content[:2] in UTF_16_MARKS else "utf-8-sig"
