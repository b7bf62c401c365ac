"""`POST /v1/chat/completions`."""

from stonechat_server.api.openapi.document import generated, request_body
from stonechat_server.api.router import Router
from stonechat_server.api.shared.generate import route_of
from stonechat_server.chat_api.endpoint import ChatEndpoint

router = Router(tags=["Chat completions"])
ENDPOINT = ChatEndpoint()
router.post(
    ENDPOINT.path,
    operation_id="createChatCompletion",
    responses=generated("ChatCompletion", "ChatCompletionChunk"),
    openapi_extra=request_body("ChatCompletionRequest"),
    summary="Create Chat Completion",
    description="Continue a conversation. The answer is plain JSON or a stream of events.",
)(route_of(ENDPOINT))
