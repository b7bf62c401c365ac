"""`POST /v1/completions`."""

from fastapi import APIRouter, Request, Response

from stonechat_server.api.generate import generate
from stonechat_server.api.openapi import generated, request_body
from stonechat_server.completions_api.endpoint import CompletionsEndpoint

router = APIRouter(tags=["Completions"])
ENDPOINT = CompletionsEndpoint()


@router.post(
    ENDPOINT.path,
    operation_id="createCompletion",
    responses=generated("Completion", "Completion"),
    openapi_extra=request_body("CompletionRequest"),
)
@router.post("/completions", include_in_schema=False)
async def create_completion(http_request: Request) -> Response:
    """Continue a text, or each of several. The answer is plain JSON or a stream of events."""
    return await generate(http_request, ENDPOINT)
