"""What the routes of all endpoints that generate do: receive, prepare, respond."""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from fastapi import Request, Response
from msgspec import UNSET

from stonechat_models import EngineError
from stonechat_server.access.auth import Identity, check_model, is_rate_limited
from stonechat_server.admission.refusals import RefusedError
from stonechat_server.api.shared.media_loading import load_media, renamed
from stonechat_server.api.shared.on_demand import answer_on_demand
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import APIError, server_error, to_api_error
from stonechat_server.request.body import check_json, discard_body, read_body, too_large
from stonechat_server.request.field_checks import check_unknown
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.serving.endpoint import Call, Endpoint, Received
from stonechat_server.serving.generation import Generation
from stonechat_server.serving.services import Services
from stonechat_server.streaming.answer_reader import AnswerReader, ChoiceState
from stonechat_server.streaming.answer_writer import AnswerWriter, CompletionHead, collect
from stonechat_server.streaming.sse import EventStream, run_while_connected

T = TypeVar("T")

INLINE_BODY_BYTES = 16_384
"""Larger bodies, and those that take long for what they have, are prepared in a thread, where they
delay no stream."""

MAX_HEADER_BYTES = 1_024
SERVER_SENT, JSON_LINES = "text/event-stream", "application/x-ndjson"
"""The media types of streams."""

log = logging.getLogger("stonechat")


def route_of(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """The route that answers the requests of an endpoint."""

    async def route(http_request: Request) -> Response:
        return await generate(http_request, endpoint)

    return route


async def generate(
    http_request: Request, endpoint: Endpoint, identity: Identity | None = None
) -> Response:
    """Answer a request. The answer is plain JSON or a stream of events.

    `identity` is who sent the request, if that is known; it has no headers then.
    """
    return await answer(await receive_counted(http_request, endpoint, identity))


async def receive_counted(
    http_request: Request, endpoint: Endpoint, identity: Identity | None = None
) -> Received:
    """Identify who sent a request, and read it. The metrics count a refusal."""
    services: Services = http_request.app.state.server
    if identity is None:
        identity = services.authenticator.identify(http_request)
    try:
        return await receive(http_request, services, identity, endpoint)
    except RefusedError as error:
        services.metrics.refused(error.reason, endpoint.path)
        raise


async def answer(received: Received) -> Response:
    """Answer a request that was read."""
    services = received.services
    if services.sole is None:
        return await answer_on_demand(received, respond)
    name = received.call.request.model or ""
    return await respond(received, services.models[name].views[name])


async def receive(
    http_request: Request, services: Services, identity: Identity, endpoint: Endpoint
) -> Received:
    """Read and check the body.

    A request that would be refused anyway is refused before its body is parsed.
    Raises `APIError`.
    """
    settings = services.settings
    limit = services.max_body_bytes if endpoint.takes_media else settings.max_body_size
    try:
        services.lifecycle.check()
        if services.sole is not None:
            services.sole.admission.refuse_early(identity.key, identity.tenant)
        elif is_rate_limited(identity.key):
            services.rate_limiter.check(identity.key)
        content_length = http_request.headers.get("content-length", "")
        if content_length.isdigit() and int(content_length) > INLINE_BODY_BYTES:
            services.preparations.check(min(int(content_length), settings.max_body_size))
    except APIError:
        await discard_body(http_request, settings, limit)
        raise
    body = await read_body(http_request, settings, limit)
    wire: Any
    if endpoint.takes_form:
        kind = http_request.headers.get("content-type", "")
        wire = await asyncio.to_thread(endpoint.parse_form, body, kind)
    else:
        check_json(body, settings)
        wire = endpoint.parse(body)
    model = check_model(wire.model, services.models, identity)
    if settings.strict_params:
        check_unknown(wire)
    call = endpoint.read(wire, services, identity)
    if call.at_end is not None:
        http_request.state.at_end.append(call.at_end)
    call.request.model = model
    if isinstance(call.request, ChatCompletionRequest):
        num_messages, maximum = len(call.request.messages), settings.max_messages
        if num_messages > maximum:
            message = (
                f"There are {num_messages} messages (the result of a tool counts as one), and at "
                f"most {maximum} are allowed."
            )
            raise call.named(APIError(400, message, param="messages", code="too_many_messages"))
    num_bytes = len(body) + call.num_extra_bytes
    if call.media:
        num_bytes -= sum([reference.num_bytes for reference in call.media])
    if num_bytes > settings.max_body_size:
        what = "body, with what it continues or refers to," if call.num_extra_bytes else "body"
        raise too_large(settings.max_body_size, what)
    return Received(
        http_request=http_request,
        services=services,
        identity=identity,
        endpoint=endpoint,
        call=call,
        num_bytes=num_bytes,
    )


async def _prepare(received: Received, model: ServedModel) -> None:
    """Load the media of a request, and make the input of the engine. Raises `APIError`."""
    endpoint = received.endpoint
    endpoint.check_model(received.call, model.engine.model)
    try:
        if received.call.media:
            await load_media(received, model)
        received.call.prepared = await run_where_it_fits(endpoint.prepare, received, model)
    except RefusedError as error:
        received.services.metrics.refused(error.reason, endpoint.path, model.metrics_name)
        raise


async def run_where_it_fits(
    work: Callable[[Call, ServedModel], T], received: Received, model: ServedModel
) -> T:
    """Do the work on a small request at once, and on any other in a thread.

    Raises `APIError` with the client's names.
    """
    call, num_bytes = received.call, received.num_bytes
    try:
        if num_bytes > INLINE_BODY_BYTES or received.endpoint.takes_long(call):
            bound = partial(work, call, model)
            return await received.services.preparations.run(bound, num_bytes)
        return work(call, model)
    except (APIError, EngineError) as error:
        raise renamed(call, error) from error.__cause__


async def respond(received: Received, model: ServedModel) -> Response:
    """Prepare a request for its model, and generate the answer: a stream of events, or JSON."""
    await _prepare(received, model)
    http_request, services, call = received.http_request, received.services, received.call
    writer = _writer(received, model)
    started = time.monotonic() if received.started is None else received.started
    generation = Generation(received, model, writer, started)
    headers = None
    if call.ignored or call.prepared[0].unenforced:
        headers = _headers(call)
    if call.request.stream:
        has_comments = not received.endpoint.streams_lines
        return EventStream(
            generation.events(),
            writer,
            partial(_encode_error, writer, http_request.state.request_id),
            keep_alive=services.settings.keep_alive_interval if has_comments else 0,
            write_timeout=services.settings.write_timeout,
            headers=headers,
            media_type=SERVER_SENT if has_comments else JSON_LINES,
        )
    work = collect(generation.events(), received.endpoint.collector(call, writer.head))
    whole = await run_while_connected(http_request.receive, work)
    if isinstance(whole, str):
        return Response(whole, headers=headers, media_type="text/plain")
    return Response(msgspec.json.encode(whole), headers=headers, media_type="application/json")


def _writer(received: Received, model: ServedModel) -> AnswerWriter:
    """The writer of one answer, over the reader of its choices."""
    endpoint, call = received.endpoint, received.call
    head = CompletionHead(
        id=endpoint.id_prefix + secrets.token_hex(12),
        created=int(time.time()),
        model=call.request.model or "",
        system_fingerprint=model.fingerprint,
        service_tier=UNSET if call.request.service_tier is None else "default",
    )
    prepared, choices, wants_ids = call.prepared, [], call.request.return_token_ids
    for prompt in prepared:
        for _ in range(prompt.params.n):
            parser = None if prompt.new_parser is None else prompt.new_parser()
            choices.append(ChoiceState(parser, token_ids=[] if wants_ids else None))
    ids = [head.id] if len(prepared) == 1 else [f"{head.id}-{i}" for i in range(len(prepared))]
    first = prepared[0]
    media_tokens = Counter[str]()
    for one in first.media:
        media_tokens[one.modality] += one.num_tokens
    reader = AnswerReader(choices, ids, len(first.prediction_token_ids), media_tokens)
    return endpoint.writer(call, head, reader)


def _encode_error(writer: AnswerWriter, request_id: str, error: Exception) -> bytes:
    api_error = to_api_error(error)
    if api_error is None:
        log.exception("a stream failed", exc_info=error)
    return writer.encode_error(api_error or server_error(), request_id)


def _headers(call: Call) -> dict[str, str]:
    lists = {
        "x-ignored-params": call.ignored,
        "x-unenforced-schema": [call.own_name(path) for path in call.prepared[0].unenforced],
    }
    return {name: name_list(names) for name, names in lists.items() if names}


def name_list(names: Sequence[str]) -> str:
    """Names that come from the client. Quoting keeps them from breaking the header."""
    text = ", ".join(quote(name, safe="._-[]$", errors="replace") for name in names)
    if len(text) <= MAX_HEADER_BYTES:
        return text
    head = text[:MAX_HEADER_BYTES].rpartition(", ")[0]
    return f"{head}, ..." if head else "..."
