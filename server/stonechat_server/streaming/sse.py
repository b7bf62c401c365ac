"""Server-sent events: chunks to bytes, and the response that sends them."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import aclosing, suppress
from typing import NoReturn

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stonechat_server.errors import server_error, to_api_error
from stonechat_server.schema.responses import ChatCompletionChunk
from stonechat_server.streaming.chunks import ChunkStream
from stonechat_server.streaming.disconnect import ClientDisconnectedError, run_while_connected

log = logging.getLogger("stonechat")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_encode = msgspec.json.Encoder().encode


def encode_event(body: object) -> bytes:
    """Encode one event with `body` as JSON. The JSON never contains a line break."""
    return b"data: %b\n\n" % _encode(body)


def encode_events(chunks: Iterable[ChatCompletionChunk]) -> bytes:
    """Encode the events of a step as one piece, which one write sends."""
    return b"".join([encode_event(chunk) for chunk in chunks])


class EventStream(Response):
    """Sends the chunks of one request, then `[DONE]`. Sends comments during silence.

    The status line goes out with the first chunk or comment. An error before it is an ordinary
    HTTP error; an error after it is an event whose JSON has `error`. If the client disconnects, or
    reads nothing for `write_timeout` seconds, the iterator of the chunks is closed at once.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: ChunkStream,
        *,
        keep_alive: float,
        write_timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(
            {
                **(headers or {}),
                "Cache-Control": "no-store",
                "Connection": "keep-alive",
                "X-Accel-Buffering": "no",
            }
        )
        self._chunks = chunks
        self._keep_alive = keep_alive or None
        self._write_timeout = write_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        writer = _Writer(send, start)
        watch = writer.watch(self._keep_alive, self._write_timeout)
        try:
            with suppress(ClientDisconnectedError):
                await run_while_connected(receive, self._send_events(writer), watch)
        except _StuckError:
            log.info("closed a stream because its client stopped reading")

    async def _send_events(self, writer: "_Writer") -> None:
        try:
            async with aclosing(self._chunks) as batches:
                async for batch in batches:
                    if batch:
                        await writer.write(encode_events(batch))
            await writer.write(DONE)
        except Exception as error:
            if not writer.has_started:
                raise
            await writer.write(_error_event(error))
        await writer.write(b"", more=False)


class _StuckError(Exception):
    """The client has read nothing for too long."""


class _Writer:
    """Sends pieces of the body. The first piece also sends the status line."""

    def __init__(self, send: Send, start: Message) -> None:
        self.has_started = False
        self._send = send
        self._start = start
        self._time = asyncio.get_running_loop().time
        self._lock = asyncio.Lock()
        self._is_writing = False
        self._since = self._time()

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a piece. Returns when the connection accepts more. `more` is False at the end."""
        async with self._lock:
            self._is_writing, self._since = True, self._time()
            try:
                if not self.has_started:
                    self.has_started = True
                    await self._send(self._start)
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
            finally:
                self._is_writing, self._since = False, self._time()

    async def watch(self, keep_alive: float | None, timeout: float) -> NoReturn:
        """Write a comment after each `keep_alive` seconds of silence, until cancelled.

        Raises `_StuckError` if a write has taken `timeout` seconds. The timer is set again only
        after it has run out, so that the writes pay nothing for it.
        """
        while True:
            passed = self._time() - self._since
            rest = timeout - passed if self._is_writing else timeout
            if rest <= 0:
                raise _StuckError
            if keep_alive is not None and not self._is_writing:
                rest = min(rest, keep_alive - passed)
            if rest > 0:
                await asyncio.sleep(rest)
            else:
                await self._write_comment(timeout)

    async def _write_comment(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self.write(KEEP_ALIVE)
        except TimeoutError:
            raise _StuckError from None


def _error_event(error: Exception) -> bytes:
    api_error = to_api_error(error)
    if api_error is None:
        log.exception("a stream failed", exc_info=error)
    return encode_event((api_error or server_error()).body())
