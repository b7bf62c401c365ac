"""What clients of `POST /infill` receive. A key whose value is `UNSET` is left out."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class InfillTimings(msgspec.Struct, kw_only=True):
    """How long the prompt and the text took, and how many tokens they have."""

    cache_n: int
    """Tokens of the prompt that were read from the cache."""
    prompt_n: int
    """The other tokens of the prompt."""
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class InfillAnswer(msgspec.Struct, kw_only=True):
    """The text that belongs into the gap, or what a chunk adds to it. The last has `stop` set."""

    index: int = 0
    content: str = ""
    stop: bool = False
    model: str | UnsetType = UNSET
    tokens_predicted: int | UnsetType = UNSET
    tokens_evaluated: int | UnsetType = UNSET
    """Tokens of the prompt."""
    tokens_cached: int | UnsetType = UNSET
    truncated: bool | UnsetType = UNSET
    """Whether files, or text far from the gap, are left out, because they did not fit."""
    stop_type: Literal["eos", "limit", "word"] | UnsetType = UNSET
    stopping_word: str | UnsetType = UNSET
    timings: InfillTimings | UnsetType = UNSET
