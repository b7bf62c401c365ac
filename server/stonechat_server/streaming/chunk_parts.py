"""Parts of the chunks and events of several of OpenAI's endpoints."""

import secrets
from collections.abc import Sequence

from msgspec import UNSET

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
from stonechat_server.streaming.answer_reader import TokenUsage

OBFUSCATION_BLOCK = 16


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
            video_tokens=usage.num_video or UNSET,
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
