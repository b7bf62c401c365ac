"""`GET /metrics`: Prometheus text. Open unless `--metrics-key` is set."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from stonechat_server.api.openapi.document import errors
from stonechat_server.observability.metrics import CONTENT_TYPE
from stonechat_server.serving.services import services_of

router = APIRouter(tags=["Health"])


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=PlainTextResponse,
    responses={**errors(401, 403)},
)
async def metrics(http_request: Request) -> Response:
    """All metrics of this server."""
    state = services_of(http_request)
    if state.settings.metrics_key:
        state.authenticator.identify(http_request)
    return Response(state.metrics.render(), headers={"content-type": CONTENT_TYPE})
