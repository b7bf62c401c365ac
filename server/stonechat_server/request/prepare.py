"""Turns a request into the input of the engine: renders and encodes its prompt, sets parameters.

Tools, formats and reasoning plug in here. A plain request does not enter their modules.
"""

from dataclasses import dataclass

from stonechat_models import EmbeddingParams, MediaInput, SamplingParams, SpeechParams
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.errors import invalid
from stonechat_server.parsers.deltas import ParserFactory
from stonechat_server.prompt.chat_template import (
    TEMPLATE_ERROR,
    ChatTemplate,
    RenderOptions,
    Templates,
)
from stonechat_server.prompt.media import MediaPlacesError, PromptMedia, placeholders_of
from stonechat_server.prompt.template_messages import to_template_messages
from stonechat_server.prompt.template_traits import TemplateTraits
from stonechat_server.request.field_checks import check_supported
from stonechat_server.request.sampling_params import check_prompt_logprobs, to_sampling_params
from stonechat_server.schema.fields import FORM_FIELDS
from stonechat_server.schema.messages import (
    AssistantMessage,
    DocumentText,
    FunctionMessage,
    ToolMessage,
)
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.sampling_fields import SamplingFields
from stonechat_server.structured.answer_spec import AnswerSpec
from stonechat_server.structured.structure import Structure

SHAPING_FIELDS = frozenset(
    {
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("response_format", "structured_outputs", "reasoning_effort", "thinking_budget"),
        *FORM_FIELDS,
    }
)
"""The request fields that may constrain the answer or its reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPrompt:
    """The prompt of a chat request, and what is known of the form of its answer."""

    text: str
    """As the template wrote it, so it may hold the marks of `SpecialTokenGuard`."""
    shown_text: str
    """The text without marks."""
    token_ids: list[int]
    spec: AnswerSpec
    media: tuple[MediaInput, ...] = ()


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
    media: tuple[MediaInput, ...] = ()
    embedding: EmbeddingParams | None = None
    """Set: the engine makes an embedding of the prompt, and generates nothing."""
    speech: SpeechParams | None = None
    """Set: the engine says what is said in the only medium, which has no place in the prompt."""


def prepare(
    request: ChatCompletionRequest, prompt: RenderedPrompt, engine: EngineLike, max_total: int
) -> PreparedRequest:
    """Prepare a request whose prompt is rendered. `max_total` bounds the tokens of all its choices.

    Raises `APIError` 400, or an engine error that `errors.py` knows.
    """
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
        media=prompt.media,
    )


def render(
    request: ChatCompletionRequest,
    engine: EngineLike,
    templates: Templates,
    structure: Structure,
    template: ChatTemplate | None = None,
) -> RenderedPrompt:
    """Render and encode the prompt of a request, which may be too long for the model.

    `template` takes the place of the chat template. Raises `APIError` 400, or an engine error that
    `errors.py` knows.
    """
    check_supported(request)
    template = template or templates.select(request)
    contents = [message.content for message in request.messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    placeholders = _placeholders(request, engine) if parts else frozenset()
    has_document = any(isinstance(part, DocumentText) for part in parts)
    needs_guard = placeholders or has_document or templates.special_tokens_as_text
    guard = templates.guard(template, placeholders) if needs_guard else None
    shown = guard.marked(request) if guard is not None else request
    if _is_plain(request, structure.traits(template.source)):
        spec = AnswerSpec(messages=to_template_messages(shown.messages), is_plain=True)
    else:
        spec = structure.specify(request, template.source, shown)
    continue_final = bool(request.continue_final_message)
    if continue_final and request.add_generation_prompt:
        raise invalid(
            "continue_final_message",
            "continue_final_message and add_generation_prompt cannot both be true.",
        )
    options = RenderOptions(
        tools=spec.tools,
        documents=shown.documents or (),
        add_generation_prompt=not continue_final and request.add_generation_prompt is not False,
        continue_final_message=continue_final,
        added_text=spec.added_text,
        variables={**spec.variables, **(shown.chat_template_kwargs or {})},
        media=PromptMedia(guard) if guard is not None and placeholders else None,
    )
    text = shown_text = template.render(spec.messages, options)
    if guard is not None and shown is not request:
        token_ids, shown_text = guard.encode(text), guard.unmarked(text)
    else:
        token_ids = engine.tokenizer.encode(text, add_special_tokens=False)
    if not token_ids:
        raise invalid("messages", "The prompt made from the messages is empty.")
    return RenderedPrompt(
        text=text,
        shown_text=shown_text,
        token_ids=token_ids,
        spec=spec,
        media=() if options.media is None else _placed(options.media, token_ids, engine),
    )


def _placeholders(request: ChatCompletionRequest, engine: EngineLike) -> frozenset[str]:
    """What stands for media: in the template's text, and as tokens. Empty without media."""
    texts = placeholders_of(request.messages)
    token_ids = engine.model.media_token_ids
    tokens = [engine.tokenizer.token_text(token_ids[modality]) for modality in texts]
    return frozenset([*texts.values(), *tokens])


def _placed(media: PromptMedia, token_ids: list[int], engine: EngineLike) -> tuple[MediaInput, ...]:
    try:
        return media.inputs(token_ids, engine.model.media_token_ids)
    except MediaPlacesError as error:
        message = f"The prompt does not fit its images, audio or videos: {error}."
        raise invalid("messages", message, TEMPLATE_ERROR) from error


def _is_plain(request: ChatCompletionRequest, traits: TemplateTraits) -> bool:
    """Whether nothing in the request, its messages or the template shapes the answer."""
    if traits.shapes_answers or not request.model_fields_set.isdisjoint(SHAPING_FIELDS):
        return False
    for message in request.messages:
        if isinstance(message, ToolMessage | FunctionMessage):
            return False
        if isinstance(message, AssistantMessage) and (message.tool_calls or message.function_call):
            return False
    return True


def prediction_token_ids(request: SamplingFields, engine: EngineLike) -> tuple[int, ...]:
    """The tokens of the request's `prediction`, at most as many as the context length."""
    if request.prediction is None:
        return ()
    content = request.prediction.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    token_ids = engine.tokenizer.encode(text, add_special_tokens=False)
    return tuple(token_ids[: engine.model.max_model_len])
