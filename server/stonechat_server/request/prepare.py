"""Turns a request into the input of the engine. Formats, tools and reasoning plug in here."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stonechat_models import SamplingParams
from stonechat_server.errors import invalid
from stonechat_server.parsers.deltas import ParserFactory
from stonechat_server.prompt.chat_template import RenderOptions
from stonechat_server.request.field_checks import check_supported
from stonechat_server.request.sampling_params import to_sampling_params
from stonechat_server.schema.fields import FORM_FIELDS

if TYPE_CHECKING:
    from stonechat_server.engine_protocol import EngineLike
    from stonechat_server.prompt.chat_template import Templates
    from stonechat_server.schema.requests import ChatCompletionRequest
    from stonechat_server.structured.answer_spec import AnswerSpec, Structure


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


def prepare(
    request: "ChatCompletionRequest",
    engine: "EngineLike",
    templates: "Templates",
    structure: "Structure",
    max_total: int,
) -> PreparedRequest:
    """Prepare a request. `max_total` bounds the tokens of all its choices.

    Raises `APIError` 400, or an engine error that `errors.py` knows. It only computes (renders,
    tokenizes, checks grammars) and may run in any thread.
    """
    check_supported(request)
    template = templates.select(request)
    guard = templates.guard(template) if templates.special_tokens_as_text else None
    shown = guard.marked(request) if guard is not None else request
    spec = structure.specify(request, template.source, shown)
    prompt = template.render(spec.messages, render_options(shown, spec))
    if guard is not None and shown is not request:
        prompt_token_ids = guard.encode(prompt)
    else:
        prompt_token_ids = engine.tokenizer.encode(prompt, add_special_tokens=False)
    if not prompt_token_ids:
        raise invalid("messages", "The prompt made from the messages is empty.")
    params = to_sampling_params(request, engine.model, len(prompt_token_ids), max_total)
    new_parser: ParserFactory | None = None
    if not spec.is_plain:
        params, new_parser = spec.after_prompt(prompt, params)
    return PreparedRequest(
        prompt_token_ids=prompt_token_ids,
        params=params,
        new_parser=new_parser,
        grammar_param=spec.grammar_param,
        unenforced=spec.unenforced,
        prediction_token_ids=_prediction_token_ids(request, engine) if request.prediction else (),
    )


def _prediction_token_ids(
    request: "ChatCompletionRequest", engine: "EngineLike"
) -> tuple[int, ...]:
    """The tokens of the request's `prediction`, at most as many as the context length."""
    if request.prediction is None:
        return ()
    content = request.prediction.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    token_ids = engine.tokenizer.encode(text, add_special_tokens=False)
    return tuple(token_ids[: engine.model.max_model_len])


def has_grammar(request: "ChatCompletionRequest") -> bool:
    """Whether the request may have schemas or grammars to check, which can take long."""
    is_structured = request.tools or request.response_format or request.structured_outputs
    return bool(is_structured) or not FORM_FIELDS.isdisjoint(request.model_fields_set)


def render_options(request: "ChatCompletionRequest", spec: "AnswerSpec") -> RenderOptions:
    """The template's input beside the messages. Raises `APIError` 400 for a contradiction."""
    continue_final = bool(request.continue_final_message)
    if continue_final and request.add_generation_prompt:
        raise invalid(
            "continue_final_message",
            "continue_final_message and add_generation_prompt cannot both be true.",
        )
    return RenderOptions(
        tools=spec.tools,
        documents=request.documents or (),
        add_generation_prompt=not continue_final and request.add_generation_prompt is not False,
        continue_final_message=continue_final,
        added_text=spec.added_text,
        variables={**spec.variables, **(request.chat_template_kwargs or {})},
    )
