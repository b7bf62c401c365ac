"""Server-sent events: chunks to bytes, and the response that sends them."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from contextlib import aclosing
from typing import Any, NoReturn

import anyio
import msgspec
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Message, Receive, Scope, Send

from stonechat_server.errors import server_error, to_api_error
from stonechat_server.schema.responses import ChatCompletionChunk
from stonechat_server.streaming.chunks import ChunkStream

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


class EventStream(EventSourceResponse):
    """Sends the chunks of one request, then `[DONE]`. Sends comments during silence.

    The status line goes out with the first chunk or comment. An error before it is an ordinary
    HTTP error; an error after it is an event whose JSON has `error`. If the client disconnects, or
    reads nothing for `write_timeout` seconds, the iterator of the chunks is closed at once.

    sse-starlette supplies the headers, the loop over the events, the tasks beside it, the wait for
    a disconnect and the cleanup. Each override says what the library does otherwise. Some override
    private methods, so `pyproject.toml` allows one minor version of the library.
    """

    def __init__(
        self,
        chunks: ChunkStream,
        *,
        keep_alive: float,
        write_timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            self._events(chunks),
            headers=headers,
            ping=keep_alive or math.inf,
            send_timeout=write_timeout,
        )
        self._time = asyncio.get_running_loop().time
        self._lock = asyncio.Lock()
        self._status_line: Message | None = None
        """Held back until the first piece of the body."""
        self._is_writing = False
        self._since = self._time()
        """When the current write began, or when the last one ended."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream. A client that stops reading is not an error, as it is in the library."""
        self._send = send
        try:
            await super().__call__(scope, receive, self._write)
        except SendTimeoutError:
            log.info("closed a stream because its client stopped reading")

    async def _events(self, chunks: ChunkStream) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(chunks) as batches:
                async for batch in batches:
                    if batch:
                        yield encode_events(batch)
            yield DONE
        except Exception as error:
            if self._status_line is not None:
                raise
            yield _error_event(error)

    async def _write(self, message: Message) -> None:
        """Send a message, but hold the status line back. The library sends it before any event."""
        if message["type"] == "http.response.start":
            self._status_line = message
            return
        async with self._lock:
            self._is_writing, self._since = True, self._time()
            try:
                if self._status_line is not None:
                    status_line, self._status_line = self._status_line, None
                    await self._send(status_line)
                await self._send(message)
            finally:
                self._is_writing, self._since = False, self._time()

    def _send_with_timeout(self, send: Send, message: Message) -> Coroutine[Any, Any, None]:
        """Leave the timeout to `_ping`. The library's timer adds a fifth to a token's work."""
        return self._write(message)

    async def _ping(self, send: Send) -> NoReturn:
        """Write comments, and raise `SendTimeoutError` for a write that takes too long.

        The library also writes comments between chunks that follow each other, and does not watch
        the end of the body. The timer is set again only after it has run out, so that writes pay
        nothing for it.
        """
        timeout = self.send_timeout
        assert timeout is not None
        while True:
            passed = self._time() - self._since
            rest = timeout - passed if self._is_writing else timeout
            if rest <= 0:
                raise SendTimeoutError
            if not self._is_writing:
                rest = min(rest, self.ping_interval - passed)
            if rest > 0:
                await asyncio.sleep(rest)
            else:
                comment = {"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True}
                await super()._send_with_timeout(send, comment)

    @staticmethod
    async def _listen_for_exit_signal() -> None:
        """Never return. The library cuts streams at a shutdown; `serving/lifecycle` drains them."""
        await anyio.sleep_forever()


def _error_event(error: Exception) -> bytes:
    api_error = to_api_error(error)
    if api_error is None:
        log.exception("a stream failed", exc_info=error)
    return encode_event((api_error or server_error()).body())
