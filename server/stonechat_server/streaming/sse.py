"""The response that sends a stream of events, and work that ends if its client disconnects."""

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, NoReturn, TypeVar

from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from stonechat_server.streaming.answer_writer import AnswerWriter, EventBatches

log = logging.getLogger("stonechat")

T = TypeVar("T")

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
        media_type: str = "text/event-stream",
    ) -> None:
        super().__init__(
            batches,
            headers=headers,
            media_type=media_type,
            ping=keep_alive or math.inf,
            send_timeout=write_timeout,
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
            if not self._has_started:
                raise
        except SendTimeoutError:
            log.info("closed a stream because its client stopped reading")

    async def _stream_response(self, send: Send) -> None:
        """Send all events. The library sends the status line before it has one, and no errors."""
        try:
            async with aclosing(self._batches) as batches:
                async for batch in batches:
                    if batch:
                        await self._write(send, self._writer.encode(batch))
            if self._writer.done:
                await self._write(send, self._writer.done)
        except Exception as error:
            if not self._has_started:
                raise
            await self._write(send, self._encode_error(error))
        await self._write(send, b"", more=False)

    async def _write(self, send: Send, piece: bytes, *, more: bool = True) -> None:
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
            await self._send_body({"type": "http.response.body", "body": piece, "more_body": more})
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
                    await self._send_with_timeout(lambda _: self._write(send, KEEP_ALIVE), {})


class ClientDisconnectedError(Exception):
    """The client disconnected before the answer was complete. Nobody can receive an error."""


async def run_while_connected(
    receive: Receive, work: Coroutine[Any, Any, T], *guards: Coroutine[Any, Any, NoReturn]
) -> T:
    """Run `work` and return its result. Raises `ClientDisconnectedError` if the client disconnects.

    The guards run beside the work; the error of a guard is raised. In both cases the work is
    cancelled and waited for. The body of the request must have been read before.

    The work runs in this task. In a task of its own it would begin only when all other requests
    that came at the same time have been prepared, and the engine would wait for the last of them.
    """
    host, is_over = asyncio.current_task(), False
    ended: list[asyncio.Task[NoReturn]] = []
    assert host is not None

    def end_work(guard: asyncio.Task[NoReturn]) -> None:
        if not is_over and not ended:
            ended.append(guard)
            host.cancel()

    tasks = [asyncio.ensure_future(guard) for guard in (_disconnected(receive), *guards)]
    for task in tasks:
        task.add_done_callback(end_work)
    try:
        return await work
    except asyncio.CancelledError:
        if not ended or host.cancelling() > 1:
            raise
        error = ended[0].exception()
    finally:
        is_over = True
        if ended:
            host.uncancel()
        for task in tasks:
            task.cancel()
        tasks.clear()  # their errors refer to this frame
        ended.clear()
        del task
    assert error is not None, "a guard ends with an error"
    try:
        raise error
    finally:
        del error


async def _disconnected(receive: Receive) -> NoReturn:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnectedError
