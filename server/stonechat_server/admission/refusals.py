"""The refusals of admission control: API errors that the metrics count by their reason."""

import math
from collections.abc import Mapping

from stonechat_server.errors import APIError


class RefusedError(APIError):
    """The server refuses or ends the request. `reason` is the label in the metrics."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str,
        code: str,
        reason: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, type=type, code=code, headers=headers)
        self.reason = reason


def too_many_requests(
    message: str,
    *,
    reason: str,
    retry_after: float | None,
    headers: Mapping[str, str] | None = None,
) -> RefusedError:
    """429 `rate_limit_exceeded`. `retry_after` is in seconds; None if waiting would not help."""
    return RefusedError(
        429,
        message,
        type="rate_limit_error",
        code="rate_limit_exceeded",
        reason=reason,
        headers={**(headers or {}), **retry_after_header(retry_after)},
    )


def timed_out(message: str, *, reason: str) -> RefusedError:
    """504 `timeout`: a deadline of the request has passed."""
    return RefusedError(504, message, type="timeout_error", code="timeout", reason=reason)


def unavailable(message: str, *, reason: str, retry_after: float | None) -> RefusedError:
    """503 `service_unavailable`: the server is draining, or its engine is down."""
    return RefusedError(
        503,
        message,
        type="server_error",
        code="service_unavailable",
        reason=reason,
        headers=retry_after_header(retry_after),
    )


def retry_after_header(seconds: float | None) -> dict[str, str]:
    """`Retry-After` in whole seconds, at least 1 (RFC 9110, section 10.2.3)."""
    if seconds is None:
        return {}
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
