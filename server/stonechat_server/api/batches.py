"""`/v1/batches`: create, list, retrieve and cancel batches. They belong to a key."""

from typing import cast

from fastapi import Request, Response

from stonechat_server.api.openapi.document import errors, json_body, request_body
from stonechat_server.api.router import Router, json_answer
from stonechat_server.api.shared.owned import page_limit, query, storage_of
from stonechat_server.batches_api.answer import BatchList, batch_object
from stonechat_server.batches_api.request import WINDOW_SECONDS, BatchRequest
from stonechat_server.batches_api.runner import BatchRunner
from stonechat_server.errors import APIError, invalid
from stonechat_server.request.body import read_request
from stonechat_server.request.field_checks import check_unknown
from stonechat_server.storage.batches import new_batch

router = Router(tags=["Batches"])

MAX_PAGE = 100
_PAGE = {
    "parameters": [
        query("limit", "How many", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}),
        query("after", "The id of the last batch of the page before", {"type": "string"}),
    ]
}


@router.post(
    "/v1/batches",
    operation_id="createBatch",
    responses={200: {"content": json_body("Batch")}, **errors(400, 401, 404, 408, 413, 429, 503)},
    openapi_extra=request_body("BatchRequest"),
)
async def create_batch(http_request: Request) -> Response:
    """Run the requests of an uploaded file, behind all other requests."""
    services, storage, identity = storage_of(http_request)
    request = await read_request(http_request, services.settings, BatchRequest)
    if services.settings.strict_params:
        check_unknown(request)
    owner = identity.key.name
    file = await storage.run(storage.files.find, owner, request.input_file_id)
    if file.purpose != "batch":
        message = "The input must be a file that was uploaded with the purpose 'batch'."
        raise invalid("input_file_id", message)
    expires = request.output_expires_after
    batch = new_batch(
        owner,
        request.endpoint,
        file.id,
        storage.files.clock(),
        WINDOW_SECONDS[request.completion_window],
        output_lifetime=None if expires is None else expires.seconds,
        metadata=request.metadata,
    )
    await storage.run(storage.batches.add, batch)
    _runner(http_request).begin(batch)
    return json_answer(batch_object(batch))


@router.get(
    "/v1/batches",
    operation_id="listBatches",
    responses={200: {"content": json_body("BatchList")}, **errors(400, 401, 404, 429, 503)},
    openapi_extra=_PAGE,
)
async def list_batches(http_request: Request) -> Response:
    """List the batches of the key, the newest first."""
    _, storage, identity = storage_of(http_request)
    batches, has_more = await storage.run(
        storage.batches.list,
        identity.key.name,
        limit=page_limit(http_request, 20, MAX_PAGE),
        after=http_request.query_params.get("after"),
    )
    data = [batch_object(batch) for batch in batches]
    first, last = (data[0].id, data[-1].id) if data else ("", "")
    return json_answer(BatchList(data=data, first_id=first, last_id=last, has_more=has_more))


@router.get(
    "/v1/batches/{batch_id}",
    operation_id="retrieveBatch",
    responses={200: {"content": json_body("Batch")}, **errors(401, 404, 429, 503)},
)
async def retrieve_batch(http_request: Request, batch_id: str) -> Response:
    """Describe a batch: its status, its counts, and its files once it has ended."""
    _, storage, identity = storage_of(http_request)
    return json_answer(
        batch_object(await storage.run(storage.batches.find, identity.key.name, batch_id))
    )


@router.post(
    "/v1/batches/{batch_id}/cancel",
    operation_id="cancelBatch",
    responses={200: {"content": json_body("Batch")}, **errors(401, 404, 409, 429, 503)},
)
async def cancel_batch(http_request: Request, batch_id: str) -> Response:
    """End a batch. What has been answered so far is kept."""
    _, storage, identity = storage_of(http_request)
    batch = await storage.run(storage.batches.find, identity.key.name, batch_id)
    batch = await storage.run(
        storage.batches.move,
        batch,
        ("validating", "in_progress"),
        status="cancelling",
        cancelling_at=int(storage.files.clock()),
    )
    if batch.cancelling_at is None:
        message = f"The batch cannot be cancelled: its status is {batch.status}."
        raise APIError(409, message, param="batch_id", code="batch_not_cancellable")
    if batch.status == "cancelling":
        _runner(http_request).cancel(batch)
    return json_answer(batch_object(batch))


def _runner(request: Request) -> BatchRunner:
    return cast(BatchRunner, request.app.state.batches)
