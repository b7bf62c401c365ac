"""A lean HTTP/1.1 client on asyncio transports, so that a load generator is not the bottleneck.

It talks to one origin, keeps idle connections in a pool, and parses answers with httptools. It
does not follow redirects, use proxies, or request content encodings.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from time import perf_counter
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httptools

BodySink = Callable[[bytes, float], None]
"""Receives body bytes and the `perf_counter` time at which they were read."""


class TransportError(Exception):
    """The connection failed or was cut, or the answer was not HTTP; the message says which."""


class _StaleConnectionError(TransportError):
    """The server closed a kept-alive connection before it sent a byte, so a retry is safe."""


class _Exchange:
    """One request in flight on a connection."""

    __slots__ = ("first_byte", "headers", "on_body", "status", "waiter")

    def __init__(self, on_body: BodySink, waiter: asyncio.Future[None]) -> None:
        self.on_body = on_body
        self.waiter = waiter
        self.status = 0
        self.headers: dict[str, str] = {}
        self.first_byte = 0.0


class _Connection(asyncio.Protocol):
    """One connection. It carries one exchange at a time."""

    def __init__(self) -> None:
        self.closed = False
        self.keep_alive = True
        self.used = False
        self._now = 0.0
        self._exchange: _Exchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: bytes, exchange: _Exchange) -> None:
        assert self._transport is not None
        self._exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

    def close(self) -> None:
        self.closed = True
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._now = perf_counter()
        exchange = self._exchange
        if exchange is None:  # bytes without a request
            self.close()
            return
        exchange.first_byte = exchange.first_byte or self._now
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(TransportError(f"the answer is not HTTP: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        exchange = self._exchange
        if exchange is None:
            return
        if self.used and not exchange.first_byte:
            self._fail(_StaleConnectionError("a kept-alive connection was closed"))
        elif exchange.status and not self._is_framed(exchange):
            self._complete()
        else:
            self._fail(TransportError(f"the connection was cut: {exc or 'end of file'}"))

    @staticmethod
    def _is_framed(exchange: _Exchange) -> bool:
        return "transfer-encoding" in exchange.headers or "content-length" in exchange.headers

    # -- called by httptools ---------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None:
            self._exchange.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._exchange is not None:
            self._exchange.on_body(body, self._now)

    def on_message_complete(self) -> None:
        self.keep_alive = self._parser.should_keep_alive()
        self._complete()

    def _complete(self) -> None:
        exchange, self._exchange = self._exchange, None
        self.used = True
        if exchange is not None and not exchange.waiter.done():
            exchange.waiter.set_result(None)

    def _fail(self, error: TransportError) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.waiter.done():
            exchange.waiter.set_exception(error)


class HttpAnswer:
    """Status and headers of an answer, whose body went to the sink.

    `sent_at` is the `perf_counter` time at which the request was sent.
    """

    __slots__ = ("headers", "sent_at", "status")

    def __init__(self, status: int, headers: dict[str, str], sent_at: float) -> None:
        self.status = status
        self.headers = headers
        self.sent_at = sent_at


class HttpClient:
    """Sends requests to one origin, from one event loop only.

    `base_url` is the root of the API; its default path is `/v1`, its default scheme http.
    `unix_socket` is the path of a socket to use in place of the URL's host and port. Raises
    ValueError if `base_url` is not an http or https URL.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        *,
        verify_tls: bool = True,
        unix_socket: str | None = None,
    ) -> None:
        parts = urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http or https URL: {base_url!r}")
        self._unix_socket = unix_socket
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self.api_path = parts.path.rstrip("/") or "/v1"
        self._tls = _tls_context(verify_tls) if parts.scheme == "https" else None
        all_headers = {"Host": parts.netloc.rpartition("@")[2], "Accept": "*/*", **headers}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
        self._idle: list[_Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in self._idle:
            connection.close()

    async def request(
        self, method: str, path: str, body: bytes, on_body: BodySink, timeout: float
    ) -> HttpAnswer:
        """Send a request, and return when its whole body has gone to `on_body`.

        Cancelling closes the connection. Raises TransportError, and TimeoutError after `timeout`
        seconds.
        """
        head = f"{method} {path} HTTP/1.1\r\n{self._head}"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        message = head.encode("latin-1") + b"\r\n" + body
        async with asyncio.timeout(timeout):
            while True:
                connection = await self._connect()
                try:
                    return await self._exchange(connection, message, on_body)
                except _StaleConnectionError:
                    continue

    async def fetch(
        self, method: str, path: str, body: bytes, timeout: float
    ) -> tuple[HttpAnswer, bytes]:
        """Send a request as `request` does, and return the answer's body too."""
        parts: list[bytes] = []
        answer = await self.request(method, path, body, lambda data, _: parts.append(data), timeout)
        return answer, b"".join(parts)

    async def _exchange(
        self, connection: _Connection, message: bytes, on_body: BodySink
    ) -> HttpAnswer:
        exchange = _Exchange(on_body, asyncio.get_running_loop().create_future())
        sent_at = perf_counter()
        connection.send(message, exchange)
        try:
            await exchange.waiter
        except BaseException:
            connection.close()
            raise
        if connection.keep_alive and not connection.closed:
            self._idle.append(connection)
        else:
            connection.close()
        return HttpAnswer(exchange.status, exchange.headers, sent_at)

    async def _connect(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        loop = asyncio.get_running_loop()
        try:
            if self._unix_socket is not None:
                _, connection = await loop.create_unix_connection(_Connection, self._unix_socket)
                return connection
            _, connection = await loop.create_connection(
                _Connection, self._host, self._port, ssl=self._tls
            )
        except OSError as error:
            raise TransportError(self._explain(error)) from error
        return connection

    def _explain(self, error: OSError) -> str:
        """Why there is no connection, and what to do."""
        place = f"{self._host}:{self._port}"
        if isinstance(error, ConnectionRefusedError) or "Multiple exceptions" in str(error):
            return (
                f"no server answers at {place}: start one with `stonechat serve`, or correct the "
                "URL"
            )
        if isinstance(error, socket.gaierror):
            return f"there is no host {self._host}: correct the URL, or check the network"
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"the certificate of {place} is not trusted: {error.verify_message}"
        if isinstance(error, ssl.SSLError):
            return f"{place} does not speak HTTPS: use an http:// URL"
        return f"cannot connect to {place}: {error.strerror or error}"


def _tls_context(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
