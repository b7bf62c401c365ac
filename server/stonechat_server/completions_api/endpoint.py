"""The endpoint `/v1/completions`: one prompt or several, and the texts that continue them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from stonechat_models import PromptTooLongError
from stonechat_server.access.auth import Identity
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.completions_api.collect import CompletionCollector
from stonechat_server.completions_api.fields import COMPLETION_FIELDS
from stonechat_server.completions_api.prompts import Prompt, PromptEncoder
from stonechat_server.completions_api.request import CompletionRequest
from stonechat_server.completions_api.writer import CompletionWriter
from stonechat_server.errors import APIError, invalid
from stonechat_server.request.field_checks import check_supported, ignored_params
from stonechat_server.request.other_names import given_names, with_own_names
from stonechat_server.request.prepare import PreparedRequest, prediction_token_ids
from stonechat_server.request.sampling_params import (
    check_prompt_logprobs,
    to_sampling_params,
    token_limits,
)
from stonechat_server.schema.base import WireModel
from stonechat_server.schema.fields import OTHER_NAMES
from stonechat_server.serving.endpoint import Call, Endpoint
from stonechat_server.serving.services import Services
from stonechat_server.streaming.answer_reader import AnswerReader
from stonechat_server.streaming.answer_writer import AnswerWriter, Collector, CompletionHead

MAX_CHOICES = 2048
"""At most this many texts are generated for one request."""
MAX_REPEATED = 2_097_152
"""Characters and token ids of prompts that an answer may have if it repeats them per choice."""
MANY_PROMPTS = 32
"""More prompts than that take long to prepare."""
NAMES = (("top_logprobs", "logprobs"), ("max_completion_tokens", "max_tokens"))
BEST_OF_NAME = ("n", "best_of")
PROMPT_NAME = ("prompt_logprobs", "logprobs")
"""With `echo`, `logprobs` asks for those of the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPrompt(PreparedRequest):
    """A prepared prompt, and how `echo` shows it."""

    prompt: Prompt


class CompletionsEndpoint(Endpoint):
    """Text completions."""

    path = "/v1/completions"
    wire_type: type[WireModel] = CompletionRequest
    id_prefix = "cmpl-"
    prompt_fields = frozenset({"prompt", "suffix"})

    def read(self, wire: CompletionRequest, services: Services, identity: Identity) -> Call:
        request, names = wire, list(NAMES)
        ignored = ignored_params(request, COMPLETION_FIELDS)
        if not OTHER_NAMES.isdisjoint(request.model_fields_set):
            names = given_names(request) + names
            request = with_own_names(request)
        check_supported(request, COMPLETION_FIELDS)
        _check_choices(request)
        if request.suffix and request.echo:
            raise invalid("echo", "echo and suffix cannot both be given.")
        if request.prompt_logprobs is None:
            names.append(PROMPT_NAME)
        if request.num_samples > request.num_choices:
            names.append(BEST_OF_NAME)
        return Call(request=request, wire=wire, ignored=ignored, names=names)

    def takes_long(self, call: Call) -> bool:
        prompts = cast(CompletionRequest, call.request).prompts
        return len(prompts) > MANY_PROMPTS or super().takes_long(call)

    def prepare(self, call: Call, model: ServedModel) -> list[PreparedRequest]:
        request, engine = cast(CompletionRequest, call.request), model.engine
        max_total = model.settings.max_completion_total
        form = model.structure.text_form(request)
        encoder = self.encoder(call, model)
        predicted = prediction_token_ids(request, engine) if request.prediction else ()
        prompts = [encoder.encode(prompt, path) for path, prompt in request.prompts]
        limits = [_limits(request, model, prompt, len(prompts)) for prompt in prompts]
        _check_repeated(request, prompts)
        num_first = len(prompts[0].token_ids)
        shared = to_sampling_params(request, engine.model, num_first, max_total, len(prompts))
        shared = replace(
            shared,
            stop_token_ids=shared.stop_token_ids + encoder.end_token_ids,
            grammar=form.grammar if form else None,
            continues_text=True,
        )
        params_of = {
            (max_tokens, min_tokens): replace(shared, max_tokens=max_tokens, min_tokens=min_tokens)
            for max_tokens, min_tokens in set(limits)
        }
        return [
            PreparedPrompt(
                prompt_token_ids=prompt.token_ids,
                params=params_of[limit],
                new_parser=None,
                grammar_param=form.param if form else None,
                prediction_token_ids=predicted,
                prompt=prompt,
            )
            for prompt, limit in zip(prompts, limits, strict=True)
        ]

    def encoder(self, call: Call, model: ServedModel) -> PromptEncoder:
        """What encodes the prompts of a request. Raises `APIError` 400."""
        as_text = model.settings.special_tokens_as_text
        return PromptEncoder(cast(CompletionRequest, call.request), model.engine, as_text=as_text)

    def writer(self, call: Call, head: CompletionHead, reader: AnswerReader) -> AnswerWriter:
        request = cast(CompletionRequest, call.request)
        prompts = [prompt.prompt for prompt in cast(Sequence[PreparedPrompt], call.prepared)]
        return CompletionWriter(head, reader, request, prompts)

    def collector(self, call: Call, head: CompletionHead) -> Collector:
        return CompletionCollector(head, cast(CompletionRequest, call.request))


def _limits(
    request: CompletionRequest, model: ServedModel, prompt: Prompt, num_prompts: int
) -> tuple[int, int]:
    """The token limits for one prompt. Raises `APIError` 400."""
    num_tokens = len(prompt.token_ids)
    max_total = model.settings.max_completion_total
    try:
        return token_limits(request, model.engine.model, num_tokens, max_total, num_prompts)
    except PromptTooLongError as error:
        raise APIError(
            400,
            f"This model's maximum context length is {error.max_model_len} tokens, and "
            f"'{prompt.path}' has {num_tokens}.",
            param=prompt.path,
            code="context_length_exceeded",
        ) from error


def _check_repeated(request: CompletionRequest, prompts: Sequence[Prompt]) -> None:
    """Bound what each choice repeats of its prompt. Raises `APIError` 400."""
    num_samples = request.num_samples
    num_tokens = sum([len(prompt.token_ids) for prompt in prompts])
    check_prompt_logprobs(request, num_tokens, num_samples)
    size = sum([len(prompt.text) for prompt in prompts]) if request.echo else 0
    size += num_tokens if request.return_token_ids else 0
    if num_samples > 1 and size * num_samples > MAX_REPEATED:
        raise APIError(
            400,
            f"{num_samples} choices that each repeat their prompt would have {size * num_samples} "
            f"characters and token ids of prompts, and at most {MAX_REPEATED} are allowed.",
            param="n",
            code="request_too_large",
        )


def _check_choices(request: CompletionRequest) -> None:
    """Raise `APIError` 400 for a `best_of` that cannot be, and for too many choices."""
    num_samples = request.num_samples
    if num_samples < request.num_choices:
        message = f"best_of ({num_samples}) must not be less than n ({request.num_choices})."
        raise invalid("best_of", message)
    if num_samples > request.num_choices and request.stream:
        raise invalid("best_of", "A stream cannot have best_of: all texts must be complete first.")
    num_texts = num_samples * len(request.prompts)
    if num_texts > MAX_CHOICES:
        raise APIError(
            400,
            f"{num_texts} texts are more than the {MAX_CHOICES} that one request may ask for.",
            param="prompt",
            code="request_too_large",
        )
