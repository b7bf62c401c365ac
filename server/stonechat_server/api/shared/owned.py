"""What routes share that serve what belongs to a key: who asks, where it is, and pages."""

from typing import Any, cast

from fastapi import Request

from stonechat_server.access.auth import Identity
from stonechat_server.errors import APIError, invalid
from stonechat_server.serving.services import Services, services_of
from stonechat_server.storage.storage import Storage

OFF = (
    "This server keeps no files, and so runs no batches: it was started with `--files-dir off`, or "
    "its folder could not be opened, which its start has told."
)


def storage_of(request: Request) -> tuple[Services, Storage, Identity]:
    """The services, the storage, and who asks. A request counts to the limits of its key.

    Raises `APIError`: 401, 404 where nothing is kept, 429 and 503.
    """
    services = services_of(request)
    identity = services.authenticator.identify(request)
    storage = cast("Storage | None", request.app.state.storage)
    if storage is None:
        raise APIError(404, OFF, code="files_off")
    services.lifecycle.check()
    services.count_request(identity)
    return services, storage, identity


def page_limit(request: Request, default: int, maximum: int) -> int:
    """The parameter `limit` of a list. Raises `APIError` 400."""
    text = request.query_params.get("limit")
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= maximum):
        raise invalid("limit", f"'limit' must be a whole number from 1 to {maximum}.")
    return int(text)


def page_order(request: Request) -> str:
    """The parameter `order` of a list: asc or desc, which is the default. Raises `APIError` 400."""
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("order", "'order' must be asc or desc.")
    return order


def query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter of the query, as the OpenAPI document describes it."""
    return {"name": name, "in": "query", "description": description, "schema": schema}
