"""The body of an error answer in Anthropic's shape, and the requests that get it."""

import msgspec
from msgspec import UNSET, UnsetType
from starlette.datastructures import Headers
from starlette.types import Scope

from stonechat_server.errors import APIError

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


MODELS = ("/v1/models", "/models")


class ErrorDetails(msgspec.Struct, kw_only=True):
    """What a program can tell the cause by: a code, and the path of the value in the body."""

    error_code: str | UnsetType = UNSET
    param: str | UnsetType = UNSET


class MessagesErrorBody(msgspec.Struct, kw_only=True):
    """What went wrong. The message names the part of the request that caused it."""

    type: str
    message: str
    details: ErrorDetails | UnsetType = UNSET


class MessagesError(msgspec.Struct, kw_only=True, tag_field="type", tag="error"):
    """`{"type": "error", "error": {...}, "request_id": ...}`."""

    error: MessagesErrorBody
    request_id: str


def is_for_anthropic(scope: Scope) -> bool:
    """Whether a request is for Anthropic's API. A list of models has two shapes, by the header."""
    path = scope["path"]
    if path.startswith(MODELS):
        return "anthropic-version" in Headers(scope=scope)
    return bool(path.startswith("/v1/messages"))


def error_body(error: APIError, request_id: str) -> MessagesError:
    """The error in Anthropic's shape."""
    otherwise = "api_error" if error.status >= 500 else "invalid_request_error"
    message, details = error.message, ErrorDetails()
    if error.param is not None:
        details.param = error.param
        if error.param not in message:
            message = f"{error.param}: {message}"
    if error.code is not None:
        details.error_code = error.code
    body = MessagesErrorBody(type=TYPES.get(error.status, otherwise), message=message)
    if error.param is not None or error.code is not None:
        body.details = details
    return MessagesError(error=body, request_id=request_id)
