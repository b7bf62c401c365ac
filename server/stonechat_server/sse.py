"""Server-sent events: chunks to bytes, and the response that sends them."""

import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Message, Receive, Scope, Send

from stonechat_server.completion import ChunkStream
from stonechat_server.errors import server_error, to_api_error
from stonechat_server.schema.responses import ChatCompletionChunk

log = logging.getLogger("stonechat")

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def encode_event(body: object) -> bytes:
    """One event with `body` as JSON, which never has a line break of its own."""
    return b"data: %b\n\n" % _encode(body)


def encode_events(chunks: Iterable[ChatCompletionChunk]) -> bytes:
    """All events of a step as one piece, to be written at once."""
    return b"".join([encode_event(chunk) for chunk in chunks])


class EventStream(EventSourceResponse):
    """Sends the chunks of one request, then `[DONE]`, with comments between to keep it alive.

    The status line waits for the first chunk, or the first comment: until then an error is an
    ordinary HTTP error, afterwards an event whose JSON has `error`. When the client goes away, or
    reads nothing for `write_timeout` seconds, the chunks' iterator is ended at once.
    """

    def __init__(
        self,
        chunks: ChunkStream,
        *,
        keep_alive: float,
        write_timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            self._events(chunks),
            headers=headers,
            ping=keep_alive,
            ping_message_factory=_keep_alive,
            sep="\n",
            send_timeout=write_timeout,
        )
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message = {}

        async def send_late(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if not self._started:
                self._started = True
                await send(start)
            await send(message)

        try:
            await super().__call__(scope, receive, send_late)
        except SendTimeoutError:
            log.info("a client that stopped reading was cut off")

    async def _events(self, chunks: ChunkStream) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(chunks):
                async for batch in chunks:
                    if batch:
                        yield encode_events(batch)
            yield DONE
        except Exception as error:
            if not self._started:
                raise
            yield _error_event(error)


def _keep_alive() -> ServerSentEvent:
    return ServerSentEvent(comment="keep-alive", sep="\n")


def _error_event(error: Exception) -> bytes:
    known = to_api_error(error)
    if known is None:
        log.exception("a stream failed", exc_info=error)
    return encode_event((known or server_error()).body())
