"""The body of every error answer."""

import msgspec


class ErrorBody(msgspec.Struct, kw_only=True):
    """What went wrong, and which part of the request caused it (`param`)."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct):
    """`{"error": {...}}`."""

    error: ErrorBody
