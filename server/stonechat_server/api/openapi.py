"""The OpenAPI document. FastAPI knows the routes; the wire types know their own schemas."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from stonechat_server.schema.errors import ErrorResponse
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    ModelCard,
    ModelList,
)

REF = "#/components/schemas/{name}"
RESPONSE_TYPES = (ChatCompletion, ChatCompletionChunk, ModelCard, ModelList, ErrorResponse)


KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}
"""The ways to send a key. A request needs one of them."""


def openapi_document(app: FastAPI, *, needs_key: bool) -> dict[str, Any]:
    """Build the whole document. `needs_key` says whether requests to `/v1` must carry a key."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    request = ChatCompletionRequest.model_json_schema(
        ref_template="#/components/schemas/{model}", mode="validation"
    )
    _, response_schemas = msgspec.json.schema_components(RESPONSE_TYPES, ref_template=REF)
    schemas = {**request.pop("$defs"), "ChatCompletionRequest": request, **response_schemas}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # this server answers 400 instead
            if needs_key and path.startswith("/v1/"):
                operation["security"] = [{name: []} for name in KEY_SCHEMES]
    components = document.setdefault("components", {})
    components["schemas"] = schemas
    if needs_key:
        components["securitySchemes"] = KEY_SCHEMES
    return document


def json_body(name: str) -> dict[str, Any]:
    """The `content` entry of a JSON body with the named schema."""
    return {"application/json": {"schema": {"$ref": REF.format(name=name)}}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` entries of error answers with these statuses."""
    return {
        status: {"description": "Error", "content": json_body("ErrorResponse")}
        for status in statuses
    }


CHAT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, events whose data are chunks, then `[DONE]`",
        "content": {
            **json_body("ChatCompletion"),
            "text/event-stream": {"schema": {}},  # a schema would be that of one event
        },
    },
    **errors(400, 401, 403, 404, 408, 413, 429, 500, 503, 504),
}
CHAT_EXTRA = {
    "requestBody": {"required": True, "content": json_body("ChatCompletionRequest")},
}
