"""`GET /version`. It needs no key, as `/health`: the OpenAPI document says the same to anybody."""

from fastapi import APIRouter, Response

from stonechat_models import __version__
from stonechat_server.api.answers import json_answer
from stonechat_server.api.openapi import json_body
from stonechat_server.api.token_types import Version

router = APIRouter(tags=["Health"])


@router.get("/version", operation_id="version", responses={200: {"content": json_body("Version")}})
async def version() -> Response:
    """The version of this server."""
    return json_answer(Version(__version__))
