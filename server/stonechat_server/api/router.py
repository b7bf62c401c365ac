"""What routes share: their two paths, and the plain answers of those that do not generate."""

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Response


class Router(APIRouter):
    """Serves each route with and without `/v1` before its path. Only the path that is given is
    documented."""

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Add a route, and its other path."""
        other = path.removeprefix("/v1") if path.startswith("/v1/") else f"/v1{path}"
        super().add_api_route(other, endpoint, **{**options, "include_in_schema": False})
        super().add_api_route(path, endpoint, **options)


def json_answer(body: msgspec.Struct) -> Response:
    """An answer with status 200 and this body."""
    return Response(msgspec.json.encode(body), media_type="application/json")
