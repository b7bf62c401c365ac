"""A request as the engine needs it: the one seam that formats, tools and reasoning extend."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stonechat_models import SamplingParams
from stonechat_server.chat_template import RenderOptions
from stonechat_server.checks import check_supported
from stonechat_server.errors import invalid
from stonechat_server.parsing import ContentParser, ParserFactory
from stonechat_server.sampling import to_sampling_params
from stonechat_server.template_messages import to_template_messages
from stonechat_server.templates import Templates

if TYPE_CHECKING:
    from stonechat_server.engine import EngineLike
    from stonechat_server.schema.requests import ChatCompletionRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to generate, and how to read what comes."""

    prompt_token_ids: list[int]
    params: SamplingParams
    new_parser: ParserFactory
    """Called once a choice."""


def prepare(request: "ChatCompletionRequest", engine: "EngineLike", templates: Templates) -> Plan:
    """Raises `APIError` 400, or an engine error that `errors.py` knows, where it cannot be done.

    Work for the processor only (rendering, tokenizing), so it may run in any thread.
    """
    check_supported(request)
    prompt = templates.select(request).render(
        to_template_messages(request.messages), render_options(request)
    )
    prompt_token_ids = engine.tokenizer.encode(prompt, add_special_tokens=False)
    if not prompt_token_ids:
        raise invalid("messages", "The messages give an empty prompt.")
    params = to_sampling_params(
        request,
        num_prompt_tokens=len(prompt_token_ids),
        max_model_len=engine.model.max_model_len,
        vocab_size=engine.model.vocab_size,
    )
    return Plan(prompt_token_ids=prompt_token_ids, params=params, new_parser=ContentParser)


def render_options(request: "ChatCompletionRequest") -> RenderOptions:
    """What the template is told beside the messages."""
    continue_final = bool(request.continue_final_message)
    if continue_final and request.add_generation_prompt:
        raise invalid(
            "continue_final_message",
            "continue_final_message and add_generation_prompt cannot both be true.",
        )
    variables = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", request.reasoning_effort)
    return RenderOptions(
        documents=request.documents or (),
        add_generation_prompt=not continue_final and request.add_generation_prompt is not False,
        continue_final_message=continue_final,
        variables=variables,
    )
