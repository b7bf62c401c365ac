"""Turns the messages of a chat request into the text and the tokens of its prompt."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stonechat_server.errors import invalid
from stonechat_server.prompt.chat_template import RenderOptions
from stonechat_server.request.field_checks import check_supported

if TYPE_CHECKING:
    from stonechat_server.engine_protocol import EngineLike
    from stonechat_server.prompt.chat_template import Templates
    from stonechat_server.schema.requests import ChatCompletionRequest
    from stonechat_server.structured.answer_spec import AnswerSpec, Structure


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPrompt:
    """The prompt of a chat request, and what is known of the form of its answer."""

    text: str
    """As the template wrote it, so it may hold the marks of `SpecialTokenGuard`."""
    shown_text: str
    """The text without marks."""
    token_ids: list[int]
    spec: "AnswerSpec"


def render(
    request: "ChatCompletionRequest",
    engine: "EngineLike",
    templates: "Templates",
    structure: "Structure",
) -> RenderedPrompt:
    """Render and encode the prompt of a request, which may be too long for the model.

    Raises `APIError` 400, or an engine error that `errors.py` knows.
    """
    check_supported(request)
    template = templates.select(request)
    guard = templates.guard(template) if templates.special_tokens_as_text else None
    shown = guard.marked(request) if guard is not None else request
    spec = structure.specify(request, template.source, shown)
    text = shown_text = template.render(spec.messages, render_options(shown, spec))
    if guard is not None and shown is not request:
        token_ids, shown_text = guard.encode(text), guard.unmarked(text)
    else:
        token_ids = engine.tokenizer.encode(text, add_special_tokens=False)
    if not token_ids:
        raise invalid("messages", "The prompt made from the messages is empty.")
    return RenderedPrompt(text=text, shown_text=shown_text, token_ids=token_ids, spec=spec)


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
