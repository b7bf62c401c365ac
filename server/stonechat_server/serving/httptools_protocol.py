"""uvicorn's protocol over httptools, with the bounds of `http_limits`. It heeds HTTP/1.0."""

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from stonechat_server.errors import APIError
from stonechat_server.serving.http_limits import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    FramingError,
    Refusing,
    check_framing,
    malformed,
    too_large,
)

BODY_HEADERS = (b"content-length", b"transfer-encoding")


class LimitedHttpTools(Refusing):
    """Counts fields as the parser finds them, and bytes as they come in."""

    _in_head = True
    """Whether the parser is between the bodies of two requests. A field after that is a trailer."""
    _error: APIError | None = None
    """Why the parser was stopped."""
    _is_repeating = False
    """Whether the parser reads headers that another parser has read before."""
    _num_fields = 0
    _num_field_bytes = 0
    _num_bytes_between = 0
    """Bytes since the last head or piece of a body was complete. The parser buffers such bytes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pieces: list[bytes] = []
        self._data = b""

    def data_received(self, data: bytes) -> None:
        if self.is_refused:
            return
        self._data = data
        self._num_bytes_between += len(data)
        super().data_received(data)
        self._deliver()
        if self._num_bytes_between > MAX_HEAD_BYTES and not self.is_refused:
            self.refuse(too_large())

    def send_400_response(self, msg: str) -> None:
        self.refuse(self._error or malformed())

    def _unsupported_upgrade_warning(self) -> None:
        """Read on: a client may offer another protocol, and the server need not take it.

        httptools reads nothing after the headers then. So a new parser goes on from there, which
        gets the headers about the body only.
        """
        error = sys.exception()
        assert isinstance(error, httptools.HttpParserUpgrade)
        rest = self._data[error.args[0] :]
        framing = [b"%b: %b\r\n" % field for field in self.headers if field[0] in BODY_HEADERS]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        if framing:
            self._is_repeating = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
            self._is_repeating = self._in_head = False
            self.cycle.more_body = True
        self.data_received(rest)

    def on_message_begin(self) -> None:
        if self._is_repeating:
            return
        super().on_message_begin()
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        if self._is_repeating:
            return
        super().on_url(url)
        self._count(0, len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_repeating:
            return
        self._count(1, len(name) + len(value))
        if self._in_head:  # uvicorn takes a trailer for a header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_repeating:
            return
        version = self.parser.get_http_version()
        try:
            check_framing(self.headers, version)
        except FramingError as error:
            self._error = error.error
            raise
        self._in_head = False
        self._num_fields = self._num_field_bytes = self._num_bytes_between = 0
        super().on_headers_complete()
        if version == "1.0":
            end_by_closing(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._num_bytes_between = 0

    def _deliver(self) -> None:
        """Give uvicorn the pieces as one: thousands of tiny chunks may have come at once."""
        if self._pieces:
            super().on_body(b"".join(self._pieces))
            self._pieces.clear()

    def on_message_complete(self) -> None:
        self._deliver()
        super().on_message_complete()
        self._in_head = True
        self._num_fields = self._num_field_bytes = self._num_bytes_between = 0

    def _count(self, num_fields: int, num_bytes: int) -> None:
        self._num_fields += num_fields
        self._num_field_bytes += num_bytes
        if self._num_fields > MAX_FIELDS or self._num_field_bytes > MAX_HEAD_BYTES:
            self._error = too_large()
            raise FramingError(self._error)


def end_by_closing(cycle: RequestResponseCycle) -> None:
    """End the body by closing if its length is unknown: HTTP/1.0 has no chunks (RFC 9112, 6.3).

    uvicorn sends chunks to every client.
    """
    send: Callable[[Any], Awaitable[None]] = cycle.send
    has_length = False

    async def send_plain(message: Any) -> None:
        nonlocal has_length
        if message["type"] == "http.response.start":
            names = [name.lower() for name, _ in message.get("headers", [])]
            has_length = b"content-length" in names
            cycle.chunked_encoding = None if has_length else False
        elif not has_length:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.send = send_plain  # type: ignore[method-assign]
