"""A scripted image processor, and small files of images."""

import base64
import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from stonechat_models import (
    ImageInfo,
    ImageOptions,
    InvalidMediaError,
    MediaTensor,
    PreparedMedia,
)
from tests.server.fake_engine import ByteTokenizer, FakeEngine, Script, model_info

PLACEHOLDER = "<image>"
TOKEN = "\x01"
"""The placeholder token of `ByteTokenizer` is the byte 1."""
IMAGES = ImageInfo(token_id=1)
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"


def png(name: str = "a", num_tokens: int = 2) -> bytes:
    """A file that the fake processor takes: the image has so many tokens."""
    return PNG + f"{num_tokens} {name}".encode()


@dataclass
class FakeMediaProcessor:
    """An image's text is `[`, its placeholder tokens, and `]`.

    A file `png(name="broken")` is one that cannot be decoded. With `holds`, nothing is ever done.
    """

    holds: bool = False
    calls: list[tuple[list[bytes], ImageOptions]] = field(default_factory=list)
    futures: list["Future[list[PreparedMedia]]"] = field(default_factory=list)

    def prepare(
        self, files: Sequence[bytes], options: ImageOptions
    ) -> "Future[list[PreparedMedia]]":
        self.calls.append((list(files), options))
        future: Future[list[PreparedMedia]] = Future()
        self.futures.append(future)
        if self.holds:
            return future
        for index, file in enumerate(files):
            if b"broken" in file:
                future.set_exception(InvalidMediaError(index, "broken", "is broken: no pixels"))
                return future
        future.set_result([prepared(file, options) for file in files])
        return future


class Eyes(FakeMediaProcessor):
    """Takes any PNG file, for eight tokens."""

    def prepare(
        self, files: Sequence[bytes], options: ImageOptions
    ) -> "Future[list[PreparedMedia]]":
        assert all(image.startswith(PNG) for image in files)
        return super().prepare([PNG + b"8 " + image for image in files], options)


def seeing_engine(script: Script) -> FakeEngine:
    """An engine for real PNG files."""
    engine = FakeEngine(script, model_info(images=IMAGES), ByteTokenizer(chat_template=TEMPLATE))
    engine.media_processor = Eyes()
    return engine


def prepared(file: bytes, options: ImageOptions) -> PreparedMedia:
    num_tokens = int(file[len(PNG) :].split()[0])
    content_hash = hashlib.blake2b(file + options.detail.encode(), digest_size=16).digest()
    return PreparedMedia(
        modality="image",
        content_hash=content_hash,
        placeholder=PLACEHOLDER,
        text="[" + num_tokens * TOKEN + "]",
        num_tokens=num_tokens,
        width=4,
        height=4,
        tensors={"pixel_values": MediaTensor("float32", (1,), b"\0\0\0\0")},
    )


def data_url(file: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(file).decode()}"


def image(file: bytes | str, **fields: Any) -> dict[str, Any]:
    """A part of a chat message: a file, or a URL."""
    url = file if isinstance(file, str) else data_url(file)
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def user(*parts: dict[str, Any] | str) -> dict[str, Any]:
    return {"role": "user", "content": [text(p) if isinstance(p, str) else p for p in parts]}


TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}
{%- for item in message.content %}
{%- if item.type == 'image' %}<v><image></v>{% else %}{{ item.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
"""Takes images in the messages of any role."""
SHOWN = "<v>[\x01\x01]</v>"
"""What an image of two tokens is in the prompt."""
