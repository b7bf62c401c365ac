"""`GET /health`: is the engine alive? `GET /ready`: are requests accepted? `GET /version`.

`GET /metrics` is Prometheus text. None needs a key, unless `--metrics-key` is set for the metrics.
"""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from stonechat_models import __version__
from stonechat_server.api.openapi.document import errors, json_body
from stonechat_server.api.router import json_answer
from stonechat_server.observability.metrics import CONTENT_TYPE
from stonechat_server.serving.services import Services, services_of
from stonechat_server.tokens_api.types import Version

router = APIRouter(tags=["Health"])


@router.get(
    "/health", operation_id="health", responses={503: {"description": "The engine has died"}}
)
async def health(http_request: Request) -> Response:
    """200 while the engine is alive, 503 once it has died.

    With several models it is 200: an engine that has died is started again when it is asked for.
    """
    return _answer(_is_alive(services_of(http_request)), b'{"status":"ok"}')


@router.get("/ready", operation_id="ready", responses={503: {"description": "Not ready"}})
async def ready(http_request: Request) -> Response:
    """200 if requests are accepted; 503 during start and shutdown, or once the engine has died."""
    state = services_of(http_request)
    return _answer(state.is_ready and _is_alive(state), b'{"status":"ready"}')


@router.get("/version", operation_id="version", responses={200: {"content": json_body("Version")}})
async def version() -> Response:
    """The version of this server."""
    return json_answer(Version(__version__))


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


def _is_alive(services: Services) -> bool:
    return services.sole is None or services.sole.engine.is_alive


def _answer(is_good: bool, body: bytes) -> Response:
    if is_good:
        return Response(body, media_type="application/json")
    return Response(b'{"status":"unavailable"}', 503, media_type="application/json")
