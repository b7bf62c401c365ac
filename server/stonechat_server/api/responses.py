"""`POST /v1/responses`."""

from fastapi import APIRouter, Request, Response

from stonechat_server.api.generate import generate
from stonechat_server.api.openapi import generated, request_body
from stonechat_server.responses_api.endpoint import ResponsesEndpoint

router = APIRouter(tags=["Responses"])
ENDPOINT = ResponsesEndpoint()


@router.post(
    ENDPOINT.path,
    operation_id="createResponse",
    responses=generated("Response", "ResponseEvent", end=""),
    openapi_extra=request_body("ResponsesRequest"),
)
@router.post("/responses", include_in_schema=False)
async def create_response(http_request: Request) -> Response:
    """Continue a list of items. The answer is plain JSON or a stream of named events."""
    return await generate(http_request, ENDPOINT)
