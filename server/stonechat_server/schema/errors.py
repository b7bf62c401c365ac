"""The body of every error answer."""

import msgspec


class ErrorBody(msgspec.Struct, kw_only=True):
    """What went wrong; `code` is a string or null."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct):
    """`{"error": {...}}`."""

    error: ErrorBody
