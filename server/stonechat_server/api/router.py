"""Where routes are collected."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter


class Router(APIRouter):
    """Serves each route with and without `/v1` before its path. Only the path that is given is
    documented."""

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Add a route, and its other path."""
        other = path.removeprefix("/v1") if path.startswith("/v1/") else f"/v1{path}"
        super().add_api_route(other, endpoint, **{**options, "include_in_schema": False})
        super().add_api_route(path, endpoint, **options)
