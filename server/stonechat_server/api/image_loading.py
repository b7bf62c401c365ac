"""Loads the images of a request for its model, before the prompt is made."""

import asyncio
from functools import partial
from typing import cast

from fastapi import Request

from stonechat_models import EngineError
from stonechat_server.access.auth import Identity
from stonechat_server.api.owned import OFF
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import APIError, to_api_error
from stonechat_server.files_api.upload import IMAGE_PURPOSES
from stonechat_server.images.errors import too_large
from stonechat_server.serving.endpoint import Call
from stonechat_server.serving.services import Services
from stonechat_server.storage.storage import Storage
from stonechat_server.streaming.disconnect import run_while_connected

NOT_FOUND = "image_file_not_found"


async def load_images(
    http_request: Request, services: Services, identity: Identity, call: Call, model: ServedModel
) -> None:
    """Load the images of a call. Raises `APIError` with the client's names.

    Raises `ClientDisconnectedError`, and loads no more, if the client disconnects.
    """
    storage = cast("Storage | None", http_request.app.state.storage)
    read = partial(_read_file, storage, identity)
    try:
        loading = services.images.load(call.images, model.engine, read, model.metrics_name)
        await run_while_connected(http_request.receive, loading)
    except (APIError, EngineError) as error:
        known = to_api_error(error)
        if known is None:
            raise
        raise call.named(known) from error


async def _read_file(
    storage: Storage | None, identity: Identity, file_id: str, max_bytes: int
) -> bytes:
    """The content of a file that belongs to the key of the request."""
    if storage is None:
        raise APIError(400, OFF, code=NOT_FOUND)
    try:
        file = await storage.run(storage.files.find, identity.key.name, file_id)
        if file.purpose not in IMAGE_PURPOSES:
            wanted = " or ".join(sorted(IMAGE_PURPOSES))
            message = f"The file '{file.id}' has the purpose {file.purpose}, and not {wanted}."
            raise APIError(400, message, code="invalid_image")
        if file.num_bytes > max_bytes:
            raise too_large(max_bytes)
        return await asyncio.to_thread(storage.files.path(file.id).read_bytes)
    except FileNotFoundError:  # it was deleted meanwhile
        raise APIError(400, f"There is no file '{file_id[:100]}'.", code=NOT_FOUND) from None
    except APIError as error:
        if error.status == 404:
            raise APIError(400, error.message, code=NOT_FOUND) from error
        raise
