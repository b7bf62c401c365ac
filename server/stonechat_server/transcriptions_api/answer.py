"""The answers and events of transcriptions, as OpenAI writes them."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class AudioInputDetails(msgspec.Struct, kw_only=True):
    """The tokens of the prompt, by what they are."""

    text_tokens: int
    audio_tokens: int


class TranscriptionUsage(msgspec.Struct, kw_only=True, tag_field="type", tag="tokens"):
    """The tokens of a transcription."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: AudioInputDetails


class DurationUsage(msgspec.Struct, kw_only=True, tag_field="type", tag="duration"):
    """The length of the audio."""

    seconds: float


class TranscriptDelta(msgspec.Struct, kw_only=True):
    """A piece of the text."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class TranscriptDone(msgspec.Struct, kw_only=True):
    """The whole text."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    usage: TranscriptionUsage | DurationUsage
    finish_reason: Literal["length"] | UnsetType = UNSET
    """An extension, there only if the text is cut off at the limit of tokens."""


class Transcription(msgspec.Struct, kw_only=True):
    """The text of audio."""

    text: str
    usage: TranscriptionUsage | DurationUsage
    finish_reason: Literal["length"] | UnsetType = UNSET


class TranscriptionSegment(msgspec.Struct, kw_only=True):
    """A part of the text with its times, in seconds."""

    id: int
    seek: int
    """Where the window begins in which it was heard, in frames of 10 ms."""
    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class TranscriptionWord(msgspec.Struct, kw_only=True):
    """A word with its times, in seconds."""

    word: str
    start: float
    end: float


class VerboseTranscription(msgspec.Struct, kw_only=True):
    """The text of audio, and what is known of the audio."""

    task: Literal["transcribe", "translate"]
    language: str
    """As the request or the model says it; of a translation, that of the text."""
    duration: float
    """Seconds."""
    text: str
    segments: list[TranscriptionSegment] | UnsetType = UNSET
    """Only of models that give timestamps, as are the words."""
    words: list[TranscriptionWord] | UnsetType = UNSET
    usage: DurationUsage
    finish_reason: Literal["length"] | UnsetType = UNSET
