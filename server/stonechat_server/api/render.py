"""`POST /v1/chat/completions/render`: what the engine would get for a chat request."""

import secrets
from typing import Any, cast

from fastapi import Request, Response

from stonechat_models import SamplingParams
from stonechat_server.api.openapi.document import answered, request_body
from stonechat_server.api.router import Router
from stonechat_server.api.shared.compute import compute
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.chat_api.endpoint import ChatEndpoint
from stonechat_server.request.prepare import prepare, render
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.serving.endpoint import Call
from stonechat_server.tokens_api.types import RenderedChat, RenderedSampling


class RenderEndpoint(ChatEndpoint):
    """The same bodies as those of chat completions."""

    path = "/v1/chat/completions/render"


ENDPOINT = RenderEndpoint()
router = Router(tags=["Tokens"])


@router.post(
    ENDPOINT.path,
    operation_id="renderChatCompletion",
    responses=answered("RenderedChat"),
    openapi_extra=request_body("ChatCompletionRequest"),
)
async def render_chat_completion(http_request: Request) -> Response:
    """Make the prompt of a chat request, as text and as tokens. Nothing is generated."""
    return await compute(http_request, ENDPOINT, _rendered)


def _rendered(call: Call, model: ServedModel) -> RenderedChat:
    request = cast(ChatCompletionRequest, call.request)
    engine, maximum = model.engine, model.settings.max_completion_total
    prompt = render(request, engine, model.templates, model.structure)
    prepared = prepare(request, prompt, engine, maximum)
    return RenderedChat(
        request_id=ENDPOINT.id_prefix + secrets.token_hex(12),
        model=request.model or "",
        prompt=prompt.shown_text,
        token_ids=prepared.prompt_token_ids,
        max_model_len=engine.model.max_model_len,
        sampling_params=_sampling(prepared.params),
        stream=bool(request.stream),
        priority=request.priority or 0,
        cache_salt=request.cache_salt,
    )


def _sampling(params: SamplingParams) -> RenderedSampling:
    own: dict[str, Any] = {
        "logit_bias": {str(token_id): bias for token_id, bias in params.logit_bias.items()},
        "logprobs": params.top_logprobs,
        "stop": list(params.stop.strings) if params.stop else [],
        "stop_token_ids": list(params.stop_token_ids),
        "thinking_budget": params.reasoning.budget if params.reasoning else None,
        "grammar": params.grammar.kind if params.grammar else None,
    }
    same = [name for name in RenderedSampling.__struct_fields__ if name not in own]
    return RenderedSampling(**own, **{name: getattr(params, name) for name in same})
