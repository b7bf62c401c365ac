"""What is asked of a model that transcribes speech, and what it says of a clip.

Times are seconds from the start of the clip.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechParams:
    """What is asked of the clip of a request, which is its only medium."""

    task: Literal["transcribe", "translate"] = "transcribe"
    language: str = ""
    """The code of the language that is spoken. Empty: the model finds it out."""
    with_words: bool = False
    """Whether segments have their words."""


class SpeechWord(msgspec.Struct, frozen=True):
    """One word, without the spaces around it, and when it is said."""

    text: str
    start: float
    end: float


class SpeechSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a transcript that the model gives times for."""

    seek: int
    """Where the window begins in which it was heard, in frames of 10 ms."""
    start: float
    end: float
    text: str
    token_ids: tuple[int, ...]
    """Those of the text, and of its times."""
    temperature: float
    avg_logprob: float
    """Of the tokens of the window."""
    compression_ratio: float
    """How much zlib shortens the text of the window: repetitions make it high."""
    no_speech_prob: float
    words: tuple[SpeechWord, ...] = ()


class Transcript(msgspec.Struct, frozen=True):
    """All that the model says of a clip."""

    language: str
    """The code of the language. Empty for a model that knows English only."""
    segments: tuple[SpeechSegment, ...]
