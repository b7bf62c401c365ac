"""`GET /health`: does the engine live. `GET /ready`: may requests be sent here. Both are open."""

from fastapi import APIRouter, Request, Response

from stonechat_server.serving.services import services_of

router = APIRouter()


@router.get("/health", operation_id="health", responses={503: {"description": "Dead"}})
async def health(http_request: Request) -> Response:
    """200, or 503 once the engine has died."""
    return _answer(services_of(http_request).engine.is_alive, b'{"status":"ok"}')


@router.get("/ready", operation_id="ready", responses={503: {"description": "Not ready"}})
async def ready(http_request: Request) -> Response:
    """200, or 503 before the start is complete, while stopping, and once the engine has died."""
    state = services_of(http_request)
    return _answer(state.is_ready and state.engine.is_alive, b'{"status":"ready"}')


def _answer(good: bool, body: bytes) -> Response:
    if good:
        return Response(body, media_type="application/json")
    return Response(b'{"status":"unavailable"}', 503, media_type="application/json")
