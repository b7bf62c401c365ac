"""What the first bytes of a file say that it holds."""

from collections.abc import Mapping

from stonechat_models import Modality
from stonechat_server.media.errors import MediaError

READ: Mapping[Modality, str] = {
    "image": "a PNG, JPEG, WebP or GIF file",
    "audio": "a WAV, MP3, FLAC or Ogg file",
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


def check_type(content: bytes, modality: Modality) -> None:
    """Raise `MediaError` for a file that is no image or no audio."""
    if not content:
        raise MediaError("is empty", "empty")
    found = audio_format(content) if modality == "audio" else image_type(content)
    if found is None:
        raise MediaError(f"is {_what(content)}not {READ[modality]}", "format")


def check_any(content: bytes) -> None:
    """Raise `MediaError` for a file that is neither an image nor audio, and not empty."""
    if content and image_type(content) is None and audio_format(content) is None:
        raise MediaError(
            f"is {_what(content)}not {READ['image']}, and not {READ['audio']}", "format"
        )


def _what(content: bytes) -> str:
    return "a PDF file, which is not read here: it is " if content.startswith(b"%PDF") else ""
