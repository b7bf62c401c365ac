"""What routes share: their two paths, how they are added, and the answers of a record."""

import re
from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Response

from stonechat_server.api.openapi.document import Responses, request_body
from stonechat_server.api.shared.generate import route_of
from stonechat_server.serving.endpoint import Endpoint


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


def add_endpoint(
    router: APIRouter,
    endpoint: Endpoint,
    operation_id: str,
    description: str,
    responses: Responses,
    *,
    body: str,
    tag: str | None = None,
) -> None:
    """Add the route of an endpoint. `body` is the name of the schema of its requests."""
    router.post(
        endpoint.path,
        operation_id=operation_id,
        summary=re.sub("([a-z])([A-Z])", r"\1 \2", operation_id).title(),
        description=description,
        responses=responses,
        openapi_extra=request_body(body),
        tags=None if tag is None else [tag],
    )(route_of(endpoint))
