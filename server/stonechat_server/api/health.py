"""`GET /health`: is the engine alive? `GET /ready`: are requests accepted? `GET /version`.

None needs a key.
"""

from fastapi import APIRouter, Request, Response

from stonechat_models import __version__
from stonechat_server.api.openapi.document import json_body
from stonechat_server.api.router import json_answer
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


def _is_alive(services: Services) -> bool:
    return services.sole is None or services.sole.engine.is_alive


def _answer(is_good: bool, body: bytes) -> Response:
    if is_good:
        return Response(body, media_type="application/json")
    return Response(b'{"status":"unavailable"}', 503, media_type="application/json")
