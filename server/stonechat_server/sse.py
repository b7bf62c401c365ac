"""Server-sent events: chunks to bytes, and the response that sends them.

Not sse-starlette's `EventSourceResponse`, for two reasons. It opens a cancel scope for every event,
which costs more than all of our own work on a chunk. And when imported it replaces uvicorn's
signal handling for the whole process and cuts every stream at SIGTERM, where running streams must
be allowed to finish. The wire format is the same.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import aclosing

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stonechat_server.completion import ChunkStream
from stonechat_server.disconnect import run_while_connected
from stonechat_server.errors import server_error, to_api_error
from stonechat_server.schema.responses import ChatCompletionChunk

log = logging.getLogger("stonechat")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_encode = msgspec.json.Encoder().encode


def encode_events(chunks: Iterable[ChatCompletionChunk]) -> bytes:
    """All events of a step as one piece, to be written at once."""
    return b"".join([b"data: %b\n\n" % _encode(chunk) for chunk in chunks])


class EventStream(Response):
    """Sends the chunks of one request, then `[DONE]`.

    The status line goes out with the first chunk, or with the first keep-alive comment: until
    then an error is an ordinary HTTP error, afterwards an event whose JSON has `error`.
    A client that goes away ends the chunks' iterator at once.
    """

    media_type = "text/event-stream"

    def __init__(
        self, chunks: ChunkStream, *, keep_alive: float, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.headers.update(headers or {})
        del self.headers["content-length"]
        self._chunks = chunks
        self._keep_alive = keep_alive
        self._lock = asyncio.Lock()
        self._started = False
        self._last_write = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await run_while_connected(receive, self._run(send))

    async def _run(self, send: Send) -> None:
        pinger = asyncio.create_task(self._ping(send)) if self._keep_alive > 0 else None
        try:
            async with aclosing(self._chunks):
                async for batch in self._chunks:
                    if batch:
                        await self._write(send, encode_events(batch))
            await self._write(send, DONE, more=False)
        except Exception as error:
            if pinger is not None:
                pinger.cancel()
            async with self._lock:  # a ping that has begun the answer is allowed to end
                if not self._started:
                    raise
            await self._write(send, self._error_event(error), more=False)
        finally:
            if pinger is not None:
                pinger.cancel()

    async def _write(self, send: Send, data: bytes, *, more: bool = True) -> None:
        async with self._lock:
            if not self._started:
                self._started = True
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
            await send({"type": "http.response.body", "body": data, "more_body": more})
        self._last_write = asyncio.get_running_loop().time()

    async def _ping(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._last_write = loop.time()
        while True:
            idle = loop.time() - self._last_write
            if idle >= self._keep_alive:
                await self._write(send, KEEP_ALIVE)
                idle = 0.0
            await asyncio.sleep(self._keep_alive - idle)

    def _error_event(self, error: Exception) -> bytes:
        known = to_api_error(error)
        if known is None:
            log.exception("a stream failed", exc_info=error)
        return b"data: %b\n\n" % (known or server_error()).encode()
