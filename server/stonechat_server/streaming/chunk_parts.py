"""What the streams of several of OpenAI's endpoints have in common."""

import secrets
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from stonechat_models import LogprobEntry
from stonechat_server.schema.responses import (
    CompletionTokensDetails,
    PromptLogprob,
    PromptLogprobs,
    PromptTokensDetails,
    TokenLogprobBody,
    TopLogprobBody,
    Usage,
)
from stonechat_server.schema.sampling_fields import SamplingFields
from stonechat_server.streaming.answer_reader import AnswerReader, TokenUsage
from stonechat_server.streaming.answer_writer import AnswerWriter, CompletionHead

OBFUSCATION_BLOCK = 16


class CompletionsWriter(AnswerWriter):
    """Writes the chunks of chat and of text completions, with what `stream_options` asks for.

    Neighbouring deltas become one chunk, unless each needs its own usage or obfuscation.
    """

    chunk_type: Any
    """The record of a chunk, which has choices."""

    def __init__(self, head: CompletionHead, reader: AnswerReader, request: SamplingFields) -> None:
        super().__init__(head, reader)
        options = request.stream_options if request.stream else None
        self._has_last_usage = bool(options and options.include_usage) or not request.stream
        self._has_each_usage = bool(options and options.continuous_usage_stats)
        self._is_obfuscated = bool(options and options.include_obfuscation)
        self._tokens_as_ids = bool(request.return_tokens_as_token_ids)
        self.joins = not (self._has_each_usage or self._is_obfuscated)

    def end(self) -> list[Any]:
        return [self._chunk([], "", has_usage=True)] if self._has_last_usage else []

    def _chunk(self, choices: list[Any], text: str, *, has_usage: bool = False) -> Any:
        """A chunk with these choices, whose text is padded. A stream with a usage has null before
        it."""
        head = self.head
        usage: Usage | UnsetType | None = None if self._has_last_usage else UNSET
        if has_usage or self._has_each_usage:
            usage = usage_body(self.reader.usage())
        return self.chunk_type(
            id=head.id,
            created=head.created,
            model=head.model,
            choices=choices,
            system_fingerprint=head.system_fingerprint,
            service_tier=head.service_tier,
            usage=usage,
            obfuscation=obfuscation(len(text)) if self._is_obfuscated else UNSET,
        )


def usage_body(usage: TokenUsage) -> Usage:
    """The usage as the completion endpoints send it."""
    return Usage(
        prompt_tokens=usage.num_prompt,
        completion_tokens=usage.num_completion,
        total_tokens=usage.num_prompt + usage.num_completion,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=usage.num_cached,
            cache_write_tokens=usage.num_cache_written,
            audio_tokens=usage.num_audio,
            image_tokens=usage.num_image,
        ),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=usage.num_reasoning,
            accepted_prediction_tokens=usage.num_accepted,
            rejected_prediction_tokens=usage.num_predicted - usage.num_accepted,
        ),
        cache_creation_input_tokens=usage.num_cache_written,
        cache_read_input_tokens=usage.num_cached,
    )


def obfuscation(num_characters: int) -> str:
    """Random digits that pad a text to whole blocks, so that its length stays hidden."""
    block = OBFUSCATION_BLOCK
    return secrets.token_hex(block)[: block - num_characters % block]


def token_id_name(token_id: int) -> str:
    """The name of a token with `return_tokens_as_token_ids`."""
    return f"token_id:{token_id}"


def logprob_body(entry: LogprobEntry) -> TokenLogprobBody:
    """The log-probability of a token and of its alternatives."""
    top = [TopLogprobBody(t.token, t.logprob, list(t.bytes)) for t in entry.top]
    return TokenLogprobBody(entry.token, entry.logprob, list(entry.bytes), top)


def prompt_logprobs_body(entries: Sequence[LogprobEntry | None], num_top: int) -> PromptLogprobs:
    """The log-probabilities of a prompt: per token, its own and those of `num_top` others."""
    return [None if entry is None else _prompt_logprob(entry, num_top) for entry in entries]


def _prompt_logprob(entry: LogprobEntry, num_top: int) -> dict[str, PromptLogprob]:
    body = {str(entry.token_id): PromptLogprob(entry.logprob, entry.rank, entry.token)}
    for rank, other in enumerate(entry.top[:num_top], start=1):
        body[str(other.token_id)] = PromptLogprob(other.logprob, rank, other.token)
    return body
