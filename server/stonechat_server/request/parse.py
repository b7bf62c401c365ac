"""Parses and checks the body of a request."""

import msgspec
from pydantic import ValidationError

from stonechat_server.errors import APIError, from_validation_error
from stonechat_server.schema.requests import ChatCompletionRequest


def parse_request(body: bytes) -> ChatCompletionRequest:
    """Parse a body. Raises `APIError` 400 unless it is a valid request."""
    try:
        return ChatCompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error, body) from error


def _explain(error: ValidationError, body: bytes) -> APIError:
    try:
        return from_validation_error(error, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return APIError(400, "The body is not valid JSON in UTF-8.", code="invalid_json")
