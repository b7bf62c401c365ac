"""`POST /v1/responses`."""

from stonechat_server.api.generate import route_of
from stonechat_server.api.openapi import generated, request_body
from stonechat_server.api.router import Router
from stonechat_server.responses_api.endpoint import ResponsesEndpoint

router = Router(tags=["Responses"])
ENDPOINT = ResponsesEndpoint()
router.post(
    ENDPOINT.path,
    operation_id="createResponse",
    responses=generated("Response", "ResponseEvent", end=""),
    openapi_extra=request_body("ResponsesRequest"),
    summary="Create Response",
    description="Continue a list of items. The answer is plain JSON or a stream of named events.",
)(route_of(ENDPOINT))
