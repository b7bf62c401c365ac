"""`POST /v1/completions`."""

from fastapi import APIRouter

from stonechat_server.api.generate import route_of
from stonechat_server.api.openapi import generated, request_body
from stonechat_server.completions_api.endpoint import CompletionsEndpoint

router = APIRouter(tags=["Completions"])
ENDPOINT = CompletionsEndpoint()
route = route_of(ENDPOINT)
router.post("/completions", include_in_schema=False)(route)
router.post(
    ENDPOINT.path,
    operation_id="createCompletion",
    responses=generated("Completion", "Completion"),
    openapi_extra=request_body("CompletionRequest"),
    summary="Create Completion",
    description="Continue a text, or each of several. "
    "The answer is plain JSON or a stream of events.",
)(route)
