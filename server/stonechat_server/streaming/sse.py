"""The response that sends server-sent events."""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import NoReturn

from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Message, Receive, Scope, Send

from stonechat_server.streaming.answer_writer import AnswerWriter, EventBatches
from stonechat_server.streaming.disconnect import ClientDisconnectedError, run_while_connected

log = logging.getLogger("stonechat")

KEEP_ALIVE = b": keep-alive\n\n"


class EventStream(EventSourceResponse):
    """Sends the events of one request, then the writer's end mark. Sends comments during silence.

    The status line goes out with the first event or comment. An error before it is an ordinary
    HTTP error; `encode_error` makes an event of an error after it. If the client disconnects, or
    reads nothing for `write_timeout` seconds, the iterator of the events is closed at once.

    sse-starlette supplies the headers and the timeout of a comment. Each override says what the
    library does otherwise. They override private methods, so `pyproject.toml` allows one minor
    version of the library only.
    """

    def __init__(
        self,
        batches: EventBatches,
        writer: AnswerWriter,
        encode_error: Callable[[Exception], bytes],
        *,
        keep_alive: float,
        write_timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            batches, headers=headers, ping=keep_alive or math.inf, send_timeout=write_timeout
        )
        del self.headers["connection"]  # the HTTP server sends its own
        self._batches = batches
        self._writer = writer
        self._encode_error = encode_error
        self._write_timeout = write_timeout
        self._has_started = False
        self._send_body: Send
        """Sends a piece past the middleware, which looks at the status line and headers only."""
        self._time = asyncio.get_running_loop().time
        self._comment = asyncio.Lock()
        """Held while a comment is written. A lock around each piece would cost more than it."""
        self._is_writing = False
        self._since = self._time()
        """When the current write began, or when the last one ended."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream in this task. The library begins it in another, and cuts it at a
        shutdown, though `serving/lifecycle` drains streams."""
        self._send_body = scope.get("state", {}).get("send_body", send)
        try:
            await run_while_connected(receive, self._stream_response(send), self._ping(send))
        except ClientDisconnectedError:
            pass
        except SendTimeoutError:
            log.info("closed a stream because its client stopped reading")

    async def _stream_response(self, send: Send) -> None:
        """Send all events. The library sends the status line before it has one, and no errors."""
        try:
            async with aclosing(self._batches) as batches:
                async for batch in batches:
                    if batch:
                        await self._write(send, _piece(self._writer.encode(batch)))
            if self._writer.done:
                await self._write(send, _piece(self._writer.done))
        except Exception as error:
            if not self._has_started:
                raise
            await self._write(send, _piece(self._encode_error(error)))
        await self._write(send, _piece(b"", more=False))

    async def _write(self, send: Send, piece: Message) -> None:
        """Send a piece, and the status line before the first. Waits until the client takes it."""
        if self._is_writing:  # a comment, which goes out first
            async with self._comment:
                pass
        self._is_writing, self._since = True, self._time()
        try:
            if not self._has_started:
                self._has_started = True
                status, headers = self.status_code, self.raw_headers
                await send({"type": "http.response.start", "status": status, "headers": headers})
            await self._send_body(piece)
        finally:
            self._is_writing, self._since = False, self._time()

    async def _ping(self, send: Send) -> NoReturn:
        """Write comments in silence, and raise `SendTimeoutError` if a write takes too long.

        The library writes comments between chunks too, and sets a timer for each write, which adds
        a fifth to the work of a token. This timer is set again only after it has run out.
        """
        while True:
            passed = self._time() - self._since
            rest = self._write_timeout - passed if self._is_writing else self._write_timeout
            if rest <= 0:
                raise SendTimeoutError
            if not self._is_writing:
                rest = min(rest, self.ping_interval - passed)
            if rest > 0:
                await asyncio.sleep(rest)
            else:
                async with self._comment:
                    await self._send_with_timeout(partial(self._write, send), _piece(KEEP_ALIVE))


def _piece(data: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
