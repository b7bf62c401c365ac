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


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Build the whole document."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    request = ChatCompletionRequest.model_json_schema(
        ref_template="#/components/schemas/{model}", mode="validation"
    )
    _, response_schemas = msgspec.json.schema_components(RESPONSE_TYPES, ref_template=REF)
    schemas = {**request.pop("$defs"), "ChatCompletionRequest": request, **response_schemas}
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # this server answers 400 instead
    components = document.setdefault("components", {})
    components["schemas"] = schemas
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
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
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    **errors(400, 401, 403, 404, 408, 413, 429, 500, 503, 504),
}
CHAT_EXTRA = {
    "requestBody": {"required": True, "content": json_body("ChatCompletionRequest")},
    "security": [{"key": []}],
}
