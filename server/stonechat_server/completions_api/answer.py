"""What clients of `POST /v1/completions` receive: chunks and answers have the same shape.

A key whose value is None is sent as null. A key whose value is `UNSET` is left out.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from stonechat_server.schema.responses import PromptLogprobs, Usage


class CompletionLogprobs(msgspec.Struct):
    """Log-probabilities of the tokens of a text: parallel lists. The first token of a prompt has
    none, only its name and place."""

    text_offset: list[int] = msgspec.field(default_factory=list)
    """The index of the character in which each token begins, from the start of the whole text."""
    token_logprobs: list[float | None] = msgspec.field(default_factory=list)
    tokens: list[str] = msgspec.field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = msgspec.field(default_factory=list)

    def extend(self, other: "CompletionLogprobs") -> None:
        """Append the tokens that follow."""
        self.text_offset += other.text_offset
        self.token_logprobs += other.token_logprobs
        self.tokens += other.tokens
        self.top_logprobs += other.top_logprobs


class CompletionChoice(msgspec.Struct, kw_only=True):
    """A text, or what a chunk adds to it; `finish_reason` is null until the last chunk of it."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """An answer, or one event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    service_tier: str | UnsetType = UNSET
    usage: Usage | UnsetType | None = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
    obfuscation: str | UnsetType = UNSET
