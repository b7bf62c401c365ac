"""What the first bytes of a file say that it holds."""

from collections.abc import Callable, Mapping, Sequence

from stonechat_models import Modality
from stonechat_server.media.errors import MediaError

READ: Mapping[Modality, str] = {
    "image": "a PNG, JPEG, WebP or GIF file",
    "audio": "a WAV, MP3, FLAC or Ogg file",
    "video": "an MP4, MOV, WebM or Matroska file",
}
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
    if not content:
        raise MediaError("is empty", "empty")
    if FORMATS[modality](content) is None:
        raise MediaError(f"is {_what(content)}not {READ[modality]}", "format")


def modality_in(content: bytes, taken: Sequence[Modality]) -> Modality:
    """What a file is: one of `taken`, the first if it is empty. Raises `MediaError` for another."""
    for modality in taken:
        if not content or FORMATS[modality](content) is not None:
            return modality
    others = ", and ".join(f"not {READ[modality]}" for modality in taken)
    raise MediaError(f"is {_what(content)}{others}", "format")


def _what(content: bytes) -> str:
    return "a PDF file, which is not read here: it is " if content.startswith(b"%PDF") else ""
