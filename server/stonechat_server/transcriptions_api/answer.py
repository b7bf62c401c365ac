"""The answers and events of transcriptions, as OpenAI writes them."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class AudioInputDetails(msgspec.Struct, kw_only=True):
    """The tokens of the prompt, by what they are."""

    text_tokens: int
    audio_tokens: int


class TranscriptionUsage(msgspec.Struct, kw_only=True):
    """The tokens of a transcription."""

    type: Literal["tokens"] = "tokens"
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: AudioInputDetails


class DurationUsage(msgspec.Struct, kw_only=True):
    """The length of the audio."""

    type: Literal["duration"] = "duration"
    seconds: float


class TranscriptDelta(msgspec.Struct, kw_only=True):
    """A piece of the text."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class TranscriptDone(msgspec.Struct, kw_only=True):
    """The whole text."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    usage: TranscriptionUsage
    finish_reason: Literal["length"] | UnsetType = UNSET
    """An extension, there only if the text is cut off at the limit of tokens."""


class Transcription(msgspec.Struct, kw_only=True):
    """The text of audio."""

    text: str
    usage: TranscriptionUsage
    finish_reason: Literal["length"] | UnsetType = UNSET


class VerboseTranscription(msgspec.Struct, kw_only=True):
    """The text of audio, and what is known of the audio. The models give no timestamps."""

    task: Literal["transcribe", "translate"]
    language: str
    """As the request or the model says it; of a translation, that of the text."""
    duration: float
    """Seconds."""
    text: str
    usage: DurationUsage
    finish_reason: Literal["length"] | UnsetType = UNSET
