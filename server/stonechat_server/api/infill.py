"""`POST /infill`, as llama.cpp's server has it."""

from stonechat_server.api.openapi.document import generated, request_body
from stonechat_server.api.router import Router
from stonechat_server.api.shared.generate import route_of
from stonechat_server.infill_api.endpoint import InfillEndpoint

router = Router(tags=["Completions"])
ENDPOINT = InfillEndpoint()
router.post(
    ENDPOINT.path,
    operation_id="createInfill",
    responses=generated("InfillAnswer", "InfillAnswer"),
    openapi_extra=request_body("InfillRequest"),
    summary="Create Infill",
    description="Fill in the middle of a text. The answer is plain JSON or a stream of events.",
)(route_of(ENDPOINT))
