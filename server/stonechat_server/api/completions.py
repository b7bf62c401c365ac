"""`POST /v1/completions`."""

from stonechat_server.api.openapi.document import generated, request_body
from stonechat_server.api.router import Router
from stonechat_server.api.shared.generate import route_of
from stonechat_server.completions_api.endpoint import CompletionsEndpoint

router = Router(tags=["Completions"])
ENDPOINT = CompletionsEndpoint()
router.post(
    ENDPOINT.path,
    operation_id="createCompletion",
    responses=generated("Completion", "Completion"),
    openapi_extra=request_body("CompletionRequest"),
    summary="Create Completion",
    description="Continue a text, or each of several. "
    "The answer is plain JSON or a stream of events.",
)(route_of(ENDPOINT))
