"""`POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from fastapi import APIRouter, Request, Response

from stonechat_server.api.openapi.document import answered, generated, request_body
from stonechat_server.api.router import add_endpoint
from stonechat_server.api.shared.compute import count_prompt
from stonechat_server.messages_api.answer import TokenCount
from stonechat_server.messages_api.endpoint import CountTokensEndpoint, MessagesEndpoint

router = APIRouter(tags=["Messages"])
add_endpoint(
    router,
    MessagesEndpoint(),
    "createMessage",
    "Continue a conversation in Anthropic's format. The answer is JSON or a stream of events.",
    generated("MessageAnswer", "MessageEvent", end="", name="MessagesError"),
    body="MessagesRequest",
)
COUNT_TOKENS = CountTokensEndpoint()


@router.post(
    COUNT_TOKENS.path,
    operation_id="countMessageTokens",
    responses=answered("TokenCount", error="MessagesError"),
    openapi_extra=request_body("CountTokensRequest"),
)
async def count_tokens(http_request: Request) -> Response:
    """Count the tokens of the prompt that a request to `/v1/messages` has."""
    return await count_prompt(http_request, COUNT_TOKENS, TokenCount)
