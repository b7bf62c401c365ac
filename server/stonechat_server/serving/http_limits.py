"""Bounds on what a request has besides its body, and how a request that exceeds them is refused.

uvicorn's protocol bounds neither the number nor the size of header fields. It answers malformed
HTTP with plain text, even in the middle of another answer.
"""

from collections.abc import Iterable
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stonechat_server.errors import APIError
from stonechat_server.observability.access_log import new_request_id
from stonechat_server.serving import half_closed

MAX_HEAD_BYTES = 65_536
"""Bound on the request line with all headers, and on the bytes between two pieces of a body."""

MAX_FIELDS = 100
"""Bound on the number of headers, and on that of trailers."""


class FramingError(Exception):
    """The parser takes a request that the server refuses with `error`."""

    def __init__(self, error: APIError) -> None:
        self.error = error


def check_framing(headers: Iterable[tuple[bytes, bytes]], http_version: str) -> None:
    """Raise `FramingError` unless these headers go together. Their names are in lower case.

    Then everybody on the way agrees to which host a request goes and where it ends (RFC 9112,
    sections 3.2 and 6.3).
    """
    headers = list(headers)
    names = [name for name, _ in headers]
    num_hosts = names.count(b"host")
    is_host_clear = num_hosts == 1 or (num_hosts == 0 and http_version == "1.0")
    has_two_lengths = b"transfer-encoding" in names and b"content-length" in names
    if http_version not in ("1.0", "1.1") or not is_host_clear or has_two_lengths:
        raise FramingError(malformed())
    codings = b",".join(value for name, value in headers if name == b"transfer-encoding")
    if b"transfer-encoding" in names and codings.strip().lower() != b"chunked":
        raise FramingError(unknown_coding())


def too_large() -> APIError:
    """The error for headers or trailers beyond a bound."""
    message = (
        f"The request has more than {MAX_FIELDS} headers or trailers, or they and the request "
        f"line are larger than {MAX_HEAD_BYTES} bytes."
    )
    return APIError(431, message, code="headers_too_large")


def malformed() -> APIError:
    """The error for bytes that are not a valid HTTP request."""
    return APIError(400, "The request is not valid HTTP.", code="invalid_http")


def unknown_coding() -> APIError:
    """The error for a body that is compressed on its way."""
    message = "The only Transfer-Encoding that is read is chunked. Send the body uncompressed."
    return APIError(415, message, code="unsupported_encoding")


class Refusing(HttpToolsProtocol):
    """uvicorn's protocol. It can refuse a request, and then reads no other."""

    is_refused = False
    """Whether all further bytes of this connection are dropped."""
    is_half_closed = False
    """Whether the client has ended its own side of the connection."""

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether the connection stays open, because an answer is due."""
        cycle = self.cycle
        is_due = cycle is not None and not cycle.more_body and not cycle.response_complete
        if not is_due or not self.transport.can_write_eof():  # TLS ends both sides at once
            return False
        if not self.is_half_closed:
            self.is_half_closed = True
            half_closed.finish(self)
        return True

    def refuse(self, error: APIError) -> None:
        """Answer with an error, unless it would get into another answer. Then end the connection.

        Bytes that still come are dropped, because a client cannot read the error while it sends.
        `SilentConnections` closes the connection if the client does not.
        """
        self.is_refused = True
        self.flow.resume_reading()
        cycle, is_busy = self.cycle, bool(self.pipeline)
        if cycle is not None and cycle.more_body:
            is_busy |= cycle.response_started
            cycle.disconnected = cycle.response_complete = True
            cycle.message_event.set()
        elif cycle is not None:
            is_busy |= not cycle.response_complete
        if is_busy:
            self.transport.close()
            return
        self.transport.write(_to_bytes(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()  # TLS: the transport itself reads to the end


def _to_bytes(error: APIError) -> bytes:
    response = error.response()
    headers = [
        *response.raw_headers,
        (b"x-request-id", new_request_id().encode()),
        (b"connection", b"close"),
    ]
    lines = [b"%b: %b\r\n" % header for header in headers]
    status = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
    return b"".join([status.encode(), *lines, b"\r\n", bytes(response.body)])
