"""`POST /v1/chat/completions`."""

from fastapi import APIRouter, Request, Response

from stonechat_server.api.generate import generate
from stonechat_server.api.openapi import generated, request_body
from stonechat_server.chat_api.endpoint import ChatEndpoint

router = APIRouter(tags=["Chat completions"])
ENDPOINT = ChatEndpoint()


@router.post(
    ENDPOINT.path,
    operation_id="createChatCompletion",
    responses=generated("ChatCompletion", "ChatCompletionChunk"),
    openapi_extra=request_body("ChatCompletionRequest"),
)
@router.post("/chat/completions", include_in_schema=False)
async def create_chat_completion(http_request: Request) -> Response:
    """Continue a conversation. The answer is plain JSON or a stream of events."""
    return await generate(http_request, ENDPOINT)
