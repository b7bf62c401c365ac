"""Converts the sampling fields of a request to `SamplingParams`."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from stonechat_models import ModelInfo, PromptTooLongError, SamplingParams, StopRules
from stonechat_server.errors import APIError, invalid
from stonechat_server.schema.fields import MAX_PROMPT_LOGPROBS
from stonechat_server.schema.sampling_fields import SamplingFields

T = TypeVar("T", int, float)

KEPT_ALTERNATIVES = 4
"""A plain answer may have this many times `max_completion_total` alternatives."""


def to_sampling_params(
    request: SamplingFields,
    model: ModelInfo,
    num_prompt_tokens: int,
    max_total: int,
    num_prompts: int = 1,
) -> SamplingParams:
    """Fill in defaults, and lower the token limit to what fits the context and `max_total`.

    `max_total` bounds the tokens of all choices of all `num_prompts` prompts of the request.
    Raises `PromptTooLongError` if not even one token fits, `APIError` 400 for fields that
    contradict each other or exceed a bound, and for token ids beyond the vocabulary.
    """
    max_tokens, min_tokens = token_limits(request, model, num_prompt_tokens, max_total, num_prompts)
    defaults = model.sampling_defaults
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return SamplingParams(
        n=request.num_samples,
        temperature=_first(request.temperature, defaults.temperature, 1.0),
        top_p=_first(request.top_p, defaults.top_p, 1.0),
        top_k=min(max(_first(request.top_k, defaults.top_k, 0), 0), model.vocab_size),
        min_p=_first(request.min_p, defaults.min_p, 0.0),
        seed=request.seed,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty, 1.0),
        logit_bias=_logit_bias(request.logit_bias, model.vocab_size) if request.logit_bias else {},
        top_logprobs=request.num_logprobs,
        prompt_logprobs=request.num_prompt_logprobs,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=StopRules(strings=stop) if stop else None,
        stop_token_ids=_stop_token_ids(request.stop_token_ids, model.vocab_size)
        if request.stop_token_ids
        else (),
        include_stop_str_in_output=bool(request.include_stop_str_in_output),
        skip_special_tokens=request.skip_special_tokens is not False,
        ignore_eos=bool(request.ignore_eos),
    )


def token_limits(
    request: SamplingFields,
    model: ModelInfo,
    num_prompt_tokens: int,
    max_total: int,
    num_prompts: int = 1,
) -> tuple[int, int]:
    """The `max_tokens` and `min_tokens` of one prompt. Bounds and errors: `to_sampling_params`."""
    room = model.max_model_len - num_prompt_tokens
    limit = request.token_limit
    if room < (0 if limit == 0 else 1):
        raise PromptTooLongError(num_prompt_tokens, model.max_model_len)
    max_tokens, min_tokens = room if limit is None else min(limit, room), request.min_tokens or 0
    if limit is not None and min_tokens > limit:
        raise invalid("min_tokens", f"min_tokens ({min_tokens}) is above the maximum ({limit}).")
    if request.num_samples * num_prompts > 1 or request.num_logprobs:
        max_tokens = _limit_total(request, max_tokens, max_total, num_prompts)
    return max_tokens, min(min_tokens, max_tokens)


def _first(value: T | None, default: T | None, otherwise: T) -> T:
    """The request's value, else the model's, else that of the API."""
    if value is not None:
        return value
    return otherwise if default is None else default


def check_prompt_logprobs(request: SamplingFields, num_tokens: int, num_copies: int = 1) -> None:
    """Bound the log-probabilities of prompts, which are kept in memory. Raises `APIError` 400.

    `num_tokens` are those of all prompts together. The answer repeats them `num_copies` times.
    """
    num_top = request.num_prompt_logprobs
    if num_top is None:
        return
    total = num_tokens * (num_top + 1) * num_copies
    if total > MAX_PROMPT_LOGPROBS:
        each = f" in each of {num_copies} choices" if num_copies > 1 else ""
        raise APIError(
            400,
            f"The log-probabilities of {num_tokens} tokens of prompts with {num_top} alternatives "
            f"each{each} are {total}, and one request may ask for at most {MAX_PROMPT_LOGPROBS}.",
            param="prompt_logprobs",
            code="request_too_large",
        )


def _limit_total(request: SamplingFields, max_tokens: int, max_total: int, num_prompts: int) -> int:
    """Bound choices times tokens by `max_total`. Returns the token limit of each choice.

    A limit that the client has set is not changed: `APIError` 400 is raised if it is too large. A
    plain answer is kept in memory, so its alternatives count too; so do those of a stream that
    repeats the answer.
    """
    num_choices, num_logprobs = request.num_samples * num_prompts, request.num_logprobs or 0
    is_kept = bool(num_logprobs) and not (request.stream and not request.num_repeats)
    limit = max_total // num_choices
    if is_kept:
        num_kept = num_choices * num_logprobs * max(1, request.num_repeats)
        limit = min(limit, KEPT_ALTERNATIVES * max_total // num_kept)
    limit = max(limit, 1)
    if max_tokens <= limit:
        return max_tokens
    if request.token_limit is None:
        return limit
    may_stream = is_kept and not request.num_repeats and request.num_samples == (request.n or 1)
    with_logprobs = f" with {num_logprobs} alternatives each" if num_logprobs else ""
    names = {"n": request.num_samples > 1, "prompt": num_prompts > 1}
    raise APIError(
        400,
        f"{num_choices} choices of up to {max_tokens} tokens{with_logprobs} are more than one "
        f"request may ask for: lower max_completion_tokens to {limit}"
        + (", or stream." if may_stream else "."),
        param=next((name for name, is_cause in names.items() if is_cause), "top_logprobs"),
        code="request_too_large",
    )


def _stop_token_ids(token_ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    for i, token_id in enumerate(token_ids):
        if token_id >= vocab_size:
            raise unknown_token(f"stop_token_ids[{i}]", token_id, vocab_size)
    return tuple(token_ids)


def _logit_bias(logit_bias: Mapping[str, float | None], vocab_size: int) -> dict[int, float]:
    biases: dict[int, float] = {}
    for key, bias in logit_bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise unknown_token("logit_bias", key, vocab_size)
        if bias is not None:
            biases[int(key)] = bias
    return biases


def unknown_token(param: str, value: object, vocab_size: int) -> APIError:
    """A 400 for what is not the id of a token of the model."""
    return invalid(
        param,
        f"Invalid '{param}': {str(value)[:20]!r} is not a token id; ids of this model go from 0 to "
        f"{vocab_size - 1}.",
    )
