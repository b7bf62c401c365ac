"""The form of `POST /v1/audio/transcriptions` and `/v1/audio/translations`.

Types and ranges are checked here. `fields.py` says what each field does.
"""

import json
import re
from io import BytesIO
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from stonechat_server.request.body import parse_request, too_large
from stonechat_server.request.form import UploadForm
from stonechat_server.schema.base import ListOf, WireModel
from stonechat_server.schema.sampling_fields import Fraction, Seed, TokenLimit

MAX_FIELD_BYTES = 65_536
NUMBERS = frozenset({"temperature", "top_p", "seed", "max_completion_tokens", "max_tokens"})
NUMBER = re.compile(r"-?[0-9]{1,25}(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,2})?")
Language = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z -]{1,31}$")]


class TranscriptionRequest(WireModel):
    """A file with speech, and the options for its text."""

    _content: bytes = PrivateAttr(b"")

    model: str | None = None
    language: Language | None = None
    prompt: str | None = None
    response_format: (
        Literal["json", "text", "verbose_json", "srt", "vtt", "diarized_json"] | None
    ) = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    stream: bool | None = None
    timestamp_granularities: ListOf[Literal["segment", "word"]] | None = None
    include: Any = None
    chunking_strategy: Any = None
    known_speaker_names: Any = None
    known_speaker_references: Any = None

    seed: Seed | None = None
    top_p: Fraction | None = None
    max_completion_tokens: TokenLimit | None = None
    max_tokens: TokenLimit | None = None
    user: str | None = None

    @property
    def with_words(self) -> bool:
        """Whether the answer has the times of words."""
        return "word" in (self.timestamp_granularities or ())

    @property
    def with_segments(self) -> bool:
        """Whether the answer has segments."""
        return "segment" in (self.timestamp_granularities or ("segment",))

    def take_content(self) -> bytes:
        """The file, which the request then has no longer."""
        content, self._content = self._content, b""
        return content


def read_form(body: bytes, content_type: str) -> TranscriptionRequest:
    """Read a form. Raises `APIError` 400."""
    sink = BytesIO()
    form = UploadForm(content_type, sink, len(body), too_large, MAX_FIELD_BYTES)
    form.feed(body)
    form.finish()
    fields = {name: _value(name, text) for name, text in form.fields.items()}
    request = parse_request(json.dumps(fields | form.lists).encode(), TranscriptionRequest)
    request._content = sink.getvalue()
    return request


def _value(name: str, text: str) -> Any:
    """The value of a field as JSON would have it. Text that is none stays text, and is refused."""
    if name == "stream" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if name == "timestamp_granularities" and text:
        return [text]
    if name in NUMBERS and NUMBER.fullmatch(text):
        return int(text) if text.lstrip("-").isdigit() else float(text)
    return text or None
