"""`POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from fastapi import APIRouter, Request, Response

from stonechat_server.api.openapi.document import answered, generated, request_body
from stonechat_server.api.shared.compute import compute, num_prompt_tokens
from stonechat_server.api.shared.generate import route_of
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.messages_api.answer import TokenCount
from stonechat_server.messages_api.endpoint import CountTokensEndpoint, MessagesEndpoint
from stonechat_server.serving.endpoint import Call

router = APIRouter(tags=["Messages"])

MESSAGES = MessagesEndpoint()
COUNT_TOKENS = CountTokensEndpoint()
router.post(
    MESSAGES.path,
    operation_id="createMessage",
    responses=generated("MessageAnswer", "MessageEvent", end="", name="MessagesError"),
    openapi_extra=request_body("MessagesRequest"),
    summary="Create Message",
    description="Continue a conversation in Anthropic's format. "
    "The answer is JSON or a stream of events.",
)(route_of(MESSAGES))


@router.post(
    COUNT_TOKENS.path,
    operation_id="countMessageTokens",
    responses=answered("TokenCount", error="MessagesError"),
    openapi_extra=request_body("CountTokensRequest"),
)
async def count_tokens(http_request: Request) -> Response:
    """Count the tokens of the prompt that a request to `/v1/messages` has."""
    return await compute(http_request, COUNT_TOKENS, _counted)


def _counted(call: Call, model: ServedModel) -> TokenCount:
    return TokenCount(num_prompt_tokens(call, model))
