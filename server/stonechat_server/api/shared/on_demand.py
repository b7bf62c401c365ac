"""Requests to one of several models: they wait until it is loaded, and hold it until they end."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, NoReturn

from fastapi import Request, Response
from starlette.types import Message, Receive, Scope, Send

from stonechat_server.admission.refusals import RefusedError, too_many_requests
from stonechat_server.catalog.entry import Entry
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import server_error, to_api_error
from stonechat_server.serving.endpoint import Received
from stonechat_server.serving.lifecycle import TIMEOUT_HEADER, request_timeout
from stonechat_server.serving.services import Services
from stonechat_server.streaming.sse import KEEP_ALIVE, ClientDisconnectedError, run_while_connected

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
Answer = Callable[[Received, ServedModel], Awaitable[Response]]
"""Prepares a request for its model, and responds."""

log = logging.getLogger("stonechat")


async def answer_on_demand(received: Received, answer: Answer) -> Response:
    """Answer with the model that the call names. A stream has comments as long as it waits."""
    http_request, services, identity = received.http_request, received.services, received.identity
    name = received.call.request.model or ""
    entry = services.models[name]
    received.started = time.monotonic()

    async def wait_and_answer() -> Response:
        try:
            await hold(http_request, services, entry)
            model = entry.views[name]
            model.admission.refuse_early(identity.key, identity.tenant)
        except RefusedError as error:
            services.metrics.refused(error.reason, received.endpoint.path, entry.name)
            raise
        return await answer(received, model)

    if entry.is_loaded:
        return await wait_and_answer()
    if received.call.request.stream and not received.endpoint.streams_lines:
        return WaitingStream(received, wait_and_answer)
    return await run_while_connected(http_request.receive, wait_and_answer())


async def hold(http_request: Request, services: Services, entry: Entry) -> None:
    """Wait until a model is loaded. It is not unloaded for want of use while the request runs.

    Raises what `Catalog.ready` raises, and `RefusedError` 429 if too many wait already.
    """
    catalog = services.catalog
    assert catalog is not None
    if not entry.is_loaded and entry.num_waiting >= services.settings.max_queued_requests:
        raise too_many_requests(
            f"The queue is full: {entry.num_waiting} requests wait until the model '{entry.name}' "
            "is loaded. Try again later.",
            reason="queue_full",
            retry_after=max(1.0, entry.load_seconds),
        )
    lease = catalog.enter(entry)
    http_request.state.at_end.append(partial(catalog.leave, lease))
    seconds = services.settings.load_timeout
    header = http_request.headers.get(TIMEOUT_HEADER)
    if header is not None:
        seconds = request_timeout(header, seconds)
    await catalog.ready(lease, seconds)


async def tokenizer_of(
    http_request: Request, services: Services, name: str, *, needs_engine: bool = False
) -> ServedModel:
    """A model whose tokenizer and templates are there. It need not be loaded, if it ever was,
    unless its engine is needed."""
    entry = services.models[name]
    if not entry.views or (needs_engine and services.catalog is not None):
        await run_while_connected(http_request.receive, hold(http_request, services, entry))
    return entry.views[name]


class WaitingStream(Response):
    """A stream whose model is loaded first. Its status goes out with the first comment.

    An error before that is an ordinary HTTP error, and an event of the endpoint after it.
    """

    media_type = "text/event-stream"

    def __init__(
        self, received: Received, answer: Callable[[], Coroutine[Any, Any, Response]]
    ) -> None:
        super().__init__()
        self._received = received
        self._answer = answer
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send comments until the answer can be made, then the answer."""

        async def send_rest(message: Message) -> None:
            if message["type"] != "http.response.start" or not self._has_started:
                await send(message)

        try:
            response = await run_while_connected(receive, self._answer(), self._comments(send))
            await response(scope, receive, send_rest)
        except Exception as error:
            if not self._has_started:
                raise
            if not isinstance(error, ClientDisconnectedError):
                await self._send_error(send, error)

    async def _comments(self, send: Send) -> NoReturn:
        interval = self._received.services.settings.keep_alive_interval
        if not interval:
            await asyncio.get_running_loop().create_future()
        while True:
            await asyncio.sleep(interval)
            if not self._has_started:
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                self._has_started = True  # not before: the answer may cancel it while it waits
            await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})

    async def _send_error(self, send: Send, error: Exception) -> None:
        known = to_api_error(error)
        if known is None:
            log.exception("a stream failed", exc_info=error)
        received = self._received
        request_id = received.http_request.state.request_id
        body = received.endpoint.encode_early_error(known or server_error(), request_id)
        await send({"type": "http.response.body", "body": body, "more_body": False})
