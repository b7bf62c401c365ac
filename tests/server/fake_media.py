"""A scripted processor of images, audio and videos, and small files of each."""

import base64
import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import msgspec

from stonechat_models import (
    AudioInfo,
    AudioOptions,
    ImageInfo,
    ImageOptions,
    InvalidMediaError,
    MediaTensor,
    PreparedMedia,
    VideoInfo,
    VideoOptions,
)
from stonechat_models.media.records import MediaPiece
from tests.server.fake_engine import ByteTokenizer, FakeEngine, Script, model_info

TENSOR = MediaTensor("float32", (1,), b"\0\0\0\0")
PLACEHOLDER = "<image>"
TOKEN = "\x01"
"""The placeholder token of `ByteTokenizer` is the byte 1."""
IMAGES = ImageInfo(token_id=1)
AUDIO_PLACEHOLDER = "<audio>"
AUDIO = AudioInfo(token_id=2)
"""The placeholder token is the byte 2."""
VIDEO_PLACEHOLDER = "<video>"
VIDEO = VideoInfo(token_id=3)
"""The placeholder token is the byte 3."""
Options = ImageOptions | AudioOptions | VideoOptions
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
WAV = b"RIFF\0\0\0\0WAVE"
MP4 = b"\0\0\0\x18ftyp"
WEBM = b"\x1aE\xdf\xa3"
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CALLED = [{"role": "user", "content": "go"}, {"role": "assistant", "tool_calls": [CALL]}]
"""The conversation before a tool's result."""


def png(name: str = "a", num_tokens: int = 2) -> bytes:
    """A file that the fake processor takes: the image has so many tokens."""
    return PNG + f"{num_tokens} {name}".encode()


def wav(name: str = "a", num_tokens: int = 3) -> bytes:
    """A file that the fake processor takes: the clip has so many tokens, and as many seconds."""
    return WAV + f"{num_tokens} {name}".encode()


def mp4(name: str = "a", num_tokens: int = 3) -> bytes:
    """A file that the fake processor takes: the video has so many frames, each a token."""
    return MP4 + f"{num_tokens} {name}".encode()


@dataclass
class FakeMediaProcessor:
    """The text of a file is `[`, its placeholder tokens, and `]`; that of a clip is `(` ... `)`,
    and that of a video has a number before each token.

    A file `png(name="broken")` is one that cannot be decoded. With `holds`, nothing is ever done.
    """

    holds: bool = False
    audio_placeholder: str = AUDIO_PLACEHOLDER
    calls: list[tuple[list[bytes], Options]] = field(default_factory=list)
    futures: list["Future[list[PreparedMedia]]"] = field(default_factory=list)

    def prepare(self, files: Sequence[bytes], options: Options) -> "Future[list[PreparedMedia]]":
        self.calls.append((list(files), options))
        future: Future[list[PreparedMedia]] = Future()
        self.futures.append(future)
        if self.holds:
            return future
        for index, file in enumerate(files):
            if (error := _error(file, options)) is not None:
                future.set_exception(InvalidMediaError(index, *error))
                return future
        future.set_result([self._prepared(file, options) for file in files])
        return future

    def _prepared(self, file: bytes, options: Options) -> PreparedMedia:
        media = prepared(file, options)
        if media.modality != "audio":
            return media
        return msgspec.structs.replace(media, placeholder=self.audio_placeholder)


class Eyes(FakeMediaProcessor):
    """Takes any PNG file, for eight tokens."""

    def prepare(self, files: Sequence[bytes], options: Options) -> "Future[list[PreparedMedia]]":
        assert all(file.startswith(PNG) for file in files)
        return super().prepare([PNG + b"8 " + file for file in files], options)


class Ears(FakeMediaProcessor):
    """Takes any WAV file, for eight tokens."""

    def prepare(self, files: Sequence[bytes], options: Options) -> "Future[list[PreparedMedia]]":
        assert all(file.startswith(b"RIFF") for file in files)
        return super().prepare([WAV + b"8 " + file for file in files], options)


def seeing_engine(script: Script) -> FakeEngine:
    """An engine for real PNG files."""
    engine = FakeEngine(script, model_info(images=IMAGES), ByteTokenizer(chat_template=TEMPLATE))
    engine.media_processor = Eyes()
    return engine


def _error(file: bytes, options: Options) -> tuple[str, str] | None:
    """The kind and the reason of what is wrong with a file."""
    if b"broken" in file:
        return "broken", "is broken: no pixels"
    if isinstance(options, AudioOptions) and _num_tokens(file, WAV) > options.max_seconds:
        return "too_long", f"is longer than {options.max_seconds:g} s"
    return None


def _num_tokens(file: bytes, head: bytes) -> int:
    return int(file[len(head) :].split()[0])


def prepared(file: bytes, options: Options) -> PreparedMedia:
    if isinstance(options, AudioOptions):
        num_tokens = _num_tokens(file, WAV)
        return PreparedMedia(
            modality="audio",
            content_hash=hashlib.blake2b(file, digest_size=16).digest(),
            placeholder=AUDIO_PLACEHOLDER,
            text="(" + num_tokens * "\x02" + ")",
            num_tokens=num_tokens,
            seconds=float(num_tokens),
            pieces=(MediaPiece(num_tokens, {"input_features": TENSOR}),),
        )
    if isinstance(options, VideoOptions):
        num_tokens = min(_num_tokens(file, MP4), options.max_frames)
        return PreparedMedia(
            modality="video",
            content_hash=hashlib.blake2b(file, digest_size=16).digest(),
            placeholder=VIDEO_PLACEHOLDER,
            text="".join(f"{i}\x03" for i in range(num_tokens)),
            num_tokens=num_tokens,
            seconds=2.0 * num_tokens,
            pieces=num_tokens * (MediaPiece(1, {"pixel_values": TENSOR}),),
        )
    num_tokens = _num_tokens(file, PNG)
    content_hash = hashlib.blake2b(file + options.detail.encode(), digest_size=16).digest()
    return PreparedMedia(
        modality="image",
        content_hash=content_hash,
        placeholder=PLACEHOLDER,
        text="[" + num_tokens * TOKEN + "]",
        num_tokens=num_tokens,
        width=4,
        height=4,
        pieces=(MediaPiece(num_tokens, {"pixel_values": TENSOR}),),
    )


def data_url(file: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(file).decode()}"


def image(file: bytes | str, **fields: Any) -> dict[str, Any]:
    """A part of a chat message: a file, or a URL."""
    url = file if isinstance(file, str) else data_url(file)
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def audio(file: bytes | str, format: str = "wav") -> dict[str, Any]:
    """A part of a chat message: a file, or base64."""
    data = file if isinstance(file, str) else base64.b64encode(file).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": format}}


def audio_url(file: bytes | str) -> dict[str, Any]:
    """A part of a chat message: a file, or a URL."""
    url = file if isinstance(file, str) else data_url(file, "audio/wav")
    return {"type": "audio_url", "audio_url": {"url": url}}


def video(file: bytes | str) -> dict[str, Any]:
    """A part of a chat message: a file, or a URL."""
    url = file if isinstance(file, str) else data_url(file, "video/mp4")
    return {"type": "video_url", "video_url": {"url": url}}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def user(*parts: dict[str, Any] | str) -> dict[str, Any]:
    return {"role": "user", "content": [text(p) if isinstance(p, str) else p for p in parts]}


def turn(content: str, role: str = "user") -> str:
    """A message as `TEMPLATE` writes it."""
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}
{%- for item in message.content %}
{%- if item.type == 'image' %}<v><image></v>
{%- elif item.type == 'audio' %}<a><audio></a>
{%- elif item.type == 'video' %}<m><video></m>{% else %}{{ item.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
"""Takes images, audio and videos in the messages of any role."""
SHOWN = "<v>[\x01\x01]</v>"
"""What an image of two tokens is in the prompt."""
HEARD = "<a>(\x02\x02\x02)</a>"
"""What a clip of three tokens is in the prompt."""
WATCHED = "<m>0\x031\x032\x03</m>"
"""What a video of three frames is in the prompt."""
