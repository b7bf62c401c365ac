"""Converts the sampling fields of a request to `SamplingParams`."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from stonechat_models import ModelInfo, PromptTooLongError, SamplingParams, StopRules
from stonechat_server.errors import APIError, invalid
from stonechat_server.schema.requests import ChatCompletionRequest

T = TypeVar("T", int, float)

KEPT_ALTERNATIVES = 4
"""A plain answer may have this many times `max_completion_total` alternatives."""


def to_sampling_params(
    request: ChatCompletionRequest, model: ModelInfo, num_prompt_tokens: int, max_total: int
) -> SamplingParams:
    """Fill in defaults, and lower the token limit to what fits the context and `max_total`.

    Raises `PromptTooLongError` if not even one token fits, `APIError` 400 for fields that
    contradict each other or exceed a bound, and for token ids beyond the vocabulary.
    """
    room = model.max_model_len - num_prompt_tokens
    if room < 1:
        raise PromptTooLongError(num_prompt_tokens, model.max_model_len)
    limit = request.token_limit
    max_tokens, min_tokens = min(limit or room, room), request.min_tokens or 0
    if limit is not None and min_tokens > limit:
        raise invalid("min_tokens", f"min_tokens ({min_tokens}) is above the maximum ({limit}).")
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true.")
    if (request.n or 1) > 1 or request.top_logprobs:
        max_tokens = _limit_total(request, max_tokens, max_total)
    defaults = model.sampling_defaults
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return SamplingParams(
        n=request.n or 1,
        temperature=_first(request.temperature, defaults.temperature, 1.0),
        top_p=_first(request.top_p, defaults.top_p, 1.0),
        top_k=min(max(_first(request.top_k, defaults.top_k, 0), 0), model.vocab_size),
        min_p=_first(request.min_p, defaults.min_p, 0.0),
        seed=request.seed,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty, 1.0),
        logit_bias=_logit_bias(request.logit_bias, model.vocab_size) if request.logit_bias else {},
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        max_tokens=max_tokens,
        min_tokens=min(min_tokens, max_tokens),
        stop=StopRules(strings=stop) if stop else None,
        stop_token_ids=_stop_token_ids(request.stop_token_ids, model.vocab_size)
        if request.stop_token_ids
        else (),
        include_stop_str_in_output=bool(request.include_stop_str_in_output),
        skip_special_tokens=request.skip_special_tokens is not False,
        ignore_eos=bool(request.ignore_eos),
    )


def _first(value: T | None, default: T | None, otherwise: T) -> T:
    """The request's value, else the model's, else that of the API."""
    if value is not None:
        return value
    return otherwise if default is None else default


def _limit_total(request: ChatCompletionRequest, max_tokens: int, max_total: int) -> int:
    """Bound choices times tokens by `max_total`. Returns the token limit of each choice.

    A limit that the client has set is not changed: `APIError` 400 is raised if it is too large. A
    plain answer is kept in memory, so its alternatives (`top_logprobs`) count too.
    """
    n, top_logprobs = request.n or 1, request.top_logprobs or 0
    limit = max_total // n
    if top_logprobs and not request.stream:
        limit = min(limit, KEPT_ALTERNATIVES * max_total // (n * top_logprobs))
    limit = max(limit, 1)
    if max_tokens <= limit:
        return max_tokens
    if request.token_limit is None:
        return limit
    raise APIError(
        400,
        f"{n} choices of up to {max_tokens} tokens"
        + (f" with {top_logprobs} alternatives each" if top_logprobs else "")
        + f" are more than one request may ask for: lower max_completion_tokens to {limit}"
        + (", or stream." if top_logprobs and not request.stream else "."),
        param="n" if n > 1 else "top_logprobs",
        code="request_too_large",
    )


def _stop_token_ids(token_ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    for i, token_id in enumerate(token_ids):
        if token_id >= vocab_size:
            param = f"stop_token_ids[{i}]"
            raise invalid(param, _not_a_token(param, token_id, vocab_size))
    return tuple(token_ids)


def _logit_bias(logit_bias: Mapping[str, float | None], vocab_size: int) -> dict[int, float]:
    biases: dict[int, float] = {}
    for key, bias in logit_bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise invalid("logit_bias", _not_a_token("logit_bias", key, vocab_size))
        if bias is not None:
            biases[int(key)] = bias
    return biases


def _not_a_token(param: str, value: object, vocab_size: int) -> str:
    return (
        f"Invalid '{param}': {str(value)[:20]!r} is not a token id; ids of this model go from 0 to "
        f"{vocab_size - 1}."
    )
