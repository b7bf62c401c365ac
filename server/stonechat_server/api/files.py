"""`/v1/files`: upload, list, retrieve, download and delete files. They belong to a key."""

from typing import Any

from fastapi import Request, Response

from stonechat_server.api.openapi.document import errors, json_body
from stonechat_server.api.router import Router, json_answer
from stonechat_server.api.shared.owned import page_limit, page_order, query, storage_of
from stonechat_server.files_api.answer import DeletedFile, FileList, file_object
from stonechat_server.files_api.download import Download
from stonechat_server.files_api.upload import receive_upload
from stonechat_server.storage.files import no_such_file

router = Router(tags=["Files"])

MAX_PAGE = 10_000
_EXPIRES_AFTER = {
    "type": "object",
    "properties": {
        "anchor": {"type": "string", "enum": ["created_at"]},
        "seconds": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
    "required": ["anchor", "seconds"],
    "additionalProperties": False,
}
_FORM = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["batch", "vision", "user_data"]},
        "expires_after": _EXPIRES_AFTER,
    },
    "required": ["file", "purpose"],
    "additionalProperties": False,
}
_UPLOAD: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
}
_PAGE = {
    "parameters": [
        query("purpose", "Only files of this purpose", {"type": "string"}),
        query("limit", "How many", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}),
        query("order", "By time of creation", {"type": "string", "enum": ["asc", "desc"]}),
        query("after", "The id of the last file of the page before", {"type": "string"}),
    ]
}


@router.post(
    "/v1/files",
    operation_id="createFile",
    responses={
        200: {"content": json_body("FileObject")},
        **errors(400, 401, 403, 404, 408, 413, 429, 503, 507),
    },
    openapi_extra=_UPLOAD,
)
async def create_file(http_request: Request) -> Response:
    """Upload a file: the input of a batch (`batch`), an image or audio (`vision`, `user_data`)."""
    services, storage, identity = storage_of(http_request)
    owner = identity.key.name
    file = await receive_upload(http_request, services.settings, storage, owner)
    return json_answer(file_object(file))


@router.get(
    "/v1/files",
    operation_id="listFiles",
    responses={200: {"content": json_body("FileList")}, **errors(400, 401, 404, 429, 503)},
    openapi_extra=_PAGE,
)
async def list_files(http_request: Request) -> Response:
    """List the files of the key, the newest first."""
    _, storage, identity = storage_of(http_request)
    parameters = http_request.query_params
    files, has_more = await storage.run(
        storage.files.list,
        identity.key.name,
        purpose=parameters.get("purpose"),
        limit=page_limit(http_request, MAX_PAGE, MAX_PAGE),
        order=page_order(http_request),
        after=parameters.get("after"),
    )
    data = [file_object(file) for file in files]
    first, last = (data[0].id, data[-1].id) if data else ("", "")
    return json_answer(FileList(data=data, first_id=first, last_id=last, has_more=has_more))


@router.get(
    "/v1/files/{file_id}",
    operation_id="retrieveFile",
    responses={200: {"content": json_body("FileObject")}, **errors(401, 404, 429, 503)},
)
async def retrieve_file(http_request: Request, file_id: str) -> Response:
    """Describe a file."""
    _, storage, identity = storage_of(http_request)
    return json_answer(
        file_object(await storage.run(storage.files.find, identity.key.name, file_id))
    )


@router.get(
    "/v1/files/{file_id}/content",
    operation_id="downloadFile",
    response_class=Response,  # else the document has JSON too
    responses={
        200: {
            "description": "The content",
            "content": {"application/octet-stream": {"schema": {"type": "string"}}},
        },
        **errors(401, 404, 429, 503),
    },
)
async def download_file(http_request: Request, file_id: str) -> Response:
    """Send the content of a file."""
    services, storage, identity = storage_of(http_request)
    file = await storage.run(storage.files.find, identity.key.name, file_id)
    path = storage.files.path(file.id)
    try:
        status = await storage.run(path.stat)
    except FileNotFoundError:  # it was deleted meanwhile
        raise no_such_file(file_id) from None
    return Download(str(path), status, file.filename, services.settings.write_timeout)


@router.delete(
    "/v1/files/{file_id}",
    operation_id="deleteFile",
    responses={200: {"content": json_body("DeletedFile")}, **errors(401, 404, 409, 429, 503)},
)
async def delete_file(http_request: Request, file_id: str) -> Response:
    """Delete a file. It must not be the input of a batch that still runs."""
    _, storage, identity = storage_of(http_request)
    await storage.run(storage.files.delete, identity.key.name, file_id)
    return json_answer(DeletedFile(id=file_id))
