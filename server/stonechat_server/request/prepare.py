"""Turns a request into the input of the engine. Formats, tools and reasoning plug in here."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stonechat_models import EmbeddingParams, SamplingParams
from stonechat_server.parsers.deltas import ParserFactory
from stonechat_server.request.render import RenderedPrompt, render
from stonechat_server.request.sampling_params import check_prompt_logprobs, to_sampling_params
from stonechat_server.schema.fields import FORM_FIELDS
from stonechat_server.schema.requests import ChatCompletionRequest

if TYPE_CHECKING:
    from stonechat_server.engine_protocol import EngineLike
    from stonechat_server.prompt.chat_template import Templates
    from stonechat_server.schema.sampling_fields import SamplingFields
    from stonechat_server.structured.answer_spec import Structure


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """The input of the engine, and a parser for its output."""

    prompt_token_ids: list[int]
    params: SamplingParams
    new_parser: ParserFactory | None
    """Called once per choice. None: all text is content."""
    grammar_param: str | None = None
    """The field of the request that `params.grammar` comes from."""
    unenforced: tuple[str, ...] = ()
    """Paths in the request of what is not enforced of the schemas of tools."""
    prediction_token_ids: tuple[int, ...] = ()
    embedding: EmbeddingParams | None = None
    """Set: the engine makes an embedding of the prompt, and generates nothing."""


def prepare(
    request: ChatCompletionRequest,
    engine: "EngineLike",
    templates: "Templates",
    structure: "Structure",
    max_total: int,
) -> PreparedRequest:
    """Prepare a request. `max_total` bounds the tokens of all its choices.

    Raises `APIError` 400, or an engine error that `errors.py` knows. It only computes (renders,
    tokenizes, checks grammars) and may run in any thread.
    """
    prompt = render(request, engine, templates, structure)
    return prepare_rendered(request, prompt, engine, max_total)


def prepare_rendered(
    request: ChatCompletionRequest, prompt: RenderedPrompt, engine: "EngineLike", max_total: int
) -> PreparedRequest:
    """Prepare a request whose prompt is rendered. The rest is as for `prepare`."""
    spec, prompt_token_ids = prompt.spec, prompt.token_ids
    params = to_sampling_params(request, engine.model, len(prompt_token_ids), max_total)
    if request.prompt_logprobs is not None:
        check_prompt_logprobs(request, len(prompt_token_ids))
    new_parser: ParserFactory | None = None
    if not spec.is_plain:
        params, new_parser = spec.after_prompt(prompt.text, params)
    return PreparedRequest(
        prompt_token_ids=prompt_token_ids,
        params=params,
        new_parser=new_parser,
        grammar_param=spec.grammar_param,
        unenforced=spec.unenforced,
        prediction_token_ids=prediction_token_ids(request, engine) if request.prediction else (),
    )


def prediction_token_ids(request: "SamplingFields", engine: "EngineLike") -> tuple[int, ...]:
    """The tokens of the request's `prediction`, at most as many as the context length."""
    if request.prediction is None:
        return ()
    content = request.prediction.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    token_ids = engine.tokenizer.encode(text, add_special_tokens=False)
    return tuple(token_ids[: engine.model.max_model_len])


def may_take_long(request: "SamplingFields") -> bool:
    """Whether the request has a template, or may have schemas or grammars to check."""
    if isinstance(request, ChatCompletionRequest) and (request.tools or request.chat_template):
        return True
    is_structured = request.response_format or request.structured_outputs
    return bool(is_structured) or not FORM_FIELDS.isdisjoint(request.model_fields_set)
