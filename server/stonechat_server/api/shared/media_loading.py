"""Loads the files of a request for its model, before the prompt is made."""

import asyncio
import time
from functools import partial
from typing import cast

from stonechat_models import EngineError
from stonechat_server.access.auth import Identity
from stonechat_server.api.shared.owned import OFF
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import APIError, to_api_error
from stonechat_server.files_api.upload import MEDIA_PURPOSES
from stonechat_server.media.errors import too_large
from stonechat_server.media.references import num_text_bytes, with_documents
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.serving.endpoint import Call, Received
from stonechat_server.serving.lifecycle import new_deadline
from stonechat_server.storage.storage import Storage
from stonechat_server.streaming.sse import run_while_connected

NOT_FOUND = "image_file_not_found"


async def load_media(received: Received, model: ServedModel) -> None:
    """Load the files of a request. Raises `APIError` with the client's names.

    The request runs from now on, and until it ends it has the media, its place and its deadline.
    Raises `ClientDisconnectedError`, and loads no more, if the client disconnects.
    """
    http_request, services, call = received.http_request, received.services, received.call
    storage = cast("Storage | None", http_request.app.state.storage)
    read = partial(_read_file, storage, received.identity)
    if received.started is None:
        received.started = time.monotonic()
    deadline = received.deadline = new_deadline(
        http_request, received.identity, services.settings.request_timeout, received.started
    )

    def end() -> None:
        deadline.close()
        services.media.release(call.media)
        services.lifecycle.leave(deadline)

    http_request.state.at_end.append(end)
    services.lifecycle.enter(deadline)
    try:
        loading = services.media.load(call.media, model.engine, read, model.metrics_name)
        await deadline.wait(run_while_connected(http_request.receive, loading))
        if any(reference.modality == "document" for reference in call.media):
            received.num_bytes += num_text_bytes(call.media)
            request = cast(ChatCompletionRequest, call.request)
            messages = with_documents(request.messages)
            call.request = request.model_copy(update={"messages": messages})
    except (APIError, EngineError) as error:
        raise renamed(call, error) from error.__cause__


def renamed(call: Call, error: Exception) -> Exception:
    """An error of the work on a call, with the client's names if it is the client's fault.

    No frame of the traceback keeps it: with it the files would stay until the next collection of
    garbage.
    """
    known = to_api_error(error)
    return error if known is None else call.named(known)


async def _read_file(
    storage: Storage | None, identity: Identity, file_id: str, max_bytes: int
) -> tuple[bytes, str]:
    """The content and the name of a file that belongs to the key of the request."""
    if storage is None:
        raise APIError(400, OFF, code=NOT_FOUND)
    try:
        file = await storage.run(storage.files.find, identity.key.name, file_id)
        if file.purpose not in MEDIA_PURPOSES:
            wanted = " or ".join(sorted(MEDIA_PURPOSES))
            message = f"The file '{file.id}' has the purpose {file.purpose}, and not {wanted}."
            raise APIError(400, message, code="invalid_image")
        if file.num_bytes > max_bytes:
            raise too_large(max_bytes)
        content = await asyncio.to_thread(storage.files.path(file.id).read_bytes)
        return content, file.filename
    except FileNotFoundError:  # it was deleted meanwhile
        raise APIError(400, f"There is no file '{file_id[:100]}'.", code=NOT_FOUND) from None
    except APIError as error:
        if error.status == 404:
            raise APIError(400, error.message, code=NOT_FOUND) from error
        raise
