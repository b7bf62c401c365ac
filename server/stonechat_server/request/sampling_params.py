"""Converts the sampling fields of a request to `SamplingParams`."""

from typing import TypeVar

from stonechat_models import PromptTooLongError, SamplingParams
from stonechat_server.errors import invalid
from stonechat_server.schema.requests import ChatCompletionRequest

T = TypeVar("T")


def to_sampling_params(
    request: ChatCompletionRequest, *, num_prompt_tokens: int, max_model_len: int, vocab_size: int
) -> SamplingParams:
    """Fill in defaults, and lower the token limit to what fits the context.

    Raises `PromptTooLongError` if not even one token fits, `APIError` 400 for fields that
    contradict each other or for token ids beyond the vocabulary.
    """
    room = max_model_len - num_prompt_tokens
    if room < 1:
        raise PromptTooLongError(num_prompt_tokens, max_model_len)
    max_tokens = min(_max_tokens(request) or room, room)
    return SamplingParams(
        n=request.n or 1,
        temperature=_value_or(request.temperature, 1.0),
        top_p=_value_or(request.top_p, 1.0),
        top_k=min(max(request.top_k or 0, 0), vocab_size),
        min_p=request.min_p or 0.0,
        seed=request.seed,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        repetition_penalty=_value_or(request.repetition_penalty, 1.0),
        logit_bias=_logit_bias(request, vocab_size),
        top_logprobs=_top_logprobs(request),
        max_tokens=max_tokens,
        min_tokens=_min_tokens(request, max_tokens),
        stop=_stop(request),
        stop_token_ids=_stop_token_ids(request, vocab_size),
        include_stop_str_in_output=bool(request.include_stop_str_in_output),
        skip_special_tokens=_value_or(request.skip_special_tokens, True),
        ignore_eos=bool(request.ignore_eos),
    )


def _value_or(value: T | None, default: T) -> T:
    return default if value is None else value


def _max_tokens(request: ChatCompletionRequest) -> int | None:
    return request.max_completion_tokens or request.max_tokens


def _min_tokens(request: ChatCompletionRequest, max_tokens: int) -> int:
    min_tokens = request.min_tokens or 0
    limit = _max_tokens(request)
    if limit is not None and min_tokens > limit:
        raise invalid("min_tokens", f"min_tokens ({min_tokens}) is above the maximum ({limit}).")
    return min(min_tokens, max_tokens)


def _top_logprobs(request: ChatCompletionRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs is not None:
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true.")
    return None


def _stop(request: ChatCompletionRequest) -> tuple[str, ...]:
    if isinstance(request.stop, str):
        return (request.stop,)
    return tuple(request.stop or ())


def _stop_token_ids(request: ChatCompletionRequest, vocab_size: int) -> tuple[int, ...]:
    token_ids = tuple(request.stop_token_ids or ())
    for i, token_id in enumerate(token_ids):
        if token_id >= vocab_size:
            raise invalid(f"stop_token_ids[{i}]", _not_a_token(token_id, vocab_size))
    return token_ids


def _logit_bias(request: ChatCompletionRequest, vocab_size: int) -> dict[int, float]:
    biases: dict[int, float] = {}
    for key, bias in (request.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise invalid("logit_bias", _not_a_token(key, vocab_size))
        if bias is not None:
            biases[int(key)] = bias
    return biases


def _not_a_token(value: object, vocab_size: int) -> str:
    return (
        f"{str(value)[:20]!r} is not a token id; ids of this model go from 0 to {vocab_size - 1}."
    )
