"""The answers and events of transcriptions, as OpenAI writes them."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class AudioInputDetails(msgspec.Struct):
    """The tokens of the prompt, by what they are."""

    text_tokens: int
    audio_tokens: int


class TranscriptionUsage(msgspec.Struct):
    """The tokens of a transcription."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: AudioInputDetails
    type: Literal["tokens"] = "tokens"


class DurationUsage(msgspec.Struct):
    """The length of the audio."""

    seconds: float
    type: Literal["duration"] = "duration"


class TranscriptDelta(msgspec.Struct):
    """A piece of the text."""

    delta: str
    type: Literal["transcript.text.delta"] = "transcript.text.delta"


class TranscriptDone(msgspec.Struct, omit_defaults=False):
    """The whole text."""

    text: str
    usage: TranscriptionUsage
    type: Literal["transcript.text.done"] = "transcript.text.done"
    finish_reason: Literal["length"] | UnsetType = UNSET
    """An extension, there only if the text is cut off at the limit of tokens."""


class Transcription(msgspec.Struct):
    """The text of audio."""

    text: str
    usage: TranscriptionUsage
    finish_reason: Literal["length"] | UnsetType = UNSET


class VerboseTranscription(msgspec.Struct):
    """The text of audio, and what is known of the audio. The models give no timestamps."""

    task: Literal["transcribe", "translate"]
    language: str
    """As the request or the model says it; of a translation, that of the text."""
    duration: float
    """Seconds."""
    text: str
    usage: DurationUsage
    finish_reason: Literal["length"] | UnsetType = UNSET
