"""`POST /v1/chat/completions`."""

import secrets
import time
from collections.abc import Sequence
from functools import partial
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from stonechat_server.access.auth import Identity, check_model
from stonechat_server.admission.refusals import RefusedError
from stonechat_server.api.openapi import CHAT_EXTRA, CHAT_RESPONSES
from stonechat_server.errors import APIError
from stonechat_server.request.body import check_json, discard_body, parse_request, read_body
from stonechat_server.request.field_checks import check_unknown, ignored_params
from stonechat_server.request.legacy_functions import with_tools
from stonechat_server.request.other_names import with_own_names
from stonechat_server.request.prepare import PreparedRequest, has_grammar, prepare
from stonechat_server.schema.fields import OTHER_NAMES
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.serving.generation import CLIENT_GONE, Generation
from stonechat_server.serving.services import Services, services_of
from stonechat_server.streaming.chunks import (
    ChoiceState,
    ChunkBuilder,
    ChunkOptions,
    CompletionHead,
)
from stonechat_server.streaming.collect import collect
from stonechat_server.streaming.disconnect import ClientDisconnectedError, run_while_connected
from stonechat_server.streaming.sse import EventStream

router = APIRouter()

INLINE_BODY_BYTES = 16_384
"""Larger bodies, and bodies with a grammar or a template of their own, are prepared in a thread,
where they delay no stream."""

MAX_HEADER_BYTES = 1_024


@router.post(
    "/v1/chat/completions",
    operation_id="createChatCompletion",
    responses=CHAT_RESPONSES,
    openapi_extra=CHAT_EXTRA,
)
@router.post("/chat/completions", include_in_schema=False)
async def create_chat_completion(http_request: Request) -> Response:
    """Continue a conversation. The answer is plain JSON or a stream of events."""
    services = services_of(http_request)
    identity = services.authenticator.identify(http_request)
    try:
        request, num_bytes = await receive(http_request, services, identity)
        prepared = await prepare_where_it_fits(request, num_bytes, services)
    except RefusedError as error:
        services.metrics.refused(error.reason)
        raise
    return await respond(http_request, services, identity, request, prepared)


async def receive(
    http_request: Request, services: Services, identity: Identity
) -> tuple[ChatCompletionRequest, int]:
    """Read and check the body. Returns the request and the size of its body in bytes.

    A request that would be refused anyway is refused before its body is parsed.
    Raises `APIError`.
    """
    settings = services.settings
    try:
        services.lifecycle.check()
        services.admission.refuse_early(identity.key, identity.tenant)
        content_length = http_request.headers.get("content-length", "")
        if content_length.isdigit() and int(content_length) > INLINE_BODY_BYTES:
            services.preparations.check(int(content_length))
    except APIError:
        await discard_body(http_request, settings)
        raise
    body = await read_body(http_request, settings)
    check_json(body, settings)
    request = parse_request(body)
    request.model = check_model(request.model, services.model_names, identity)
    if len(request.messages) > settings.max_messages:
        raise APIError(
            400,
            f"There are {len(request.messages)} messages, and at most {settings.max_messages} "
            "are allowed.",
            param="messages",
            code="too_many_messages",
        )
    if settings.strict_params:
        check_unknown(request)
    if not OTHER_NAMES.isdisjoint(request.model_fields_set):
        request = with_own_names(request)
    if request.functions is not None or request.function_call is not None:
        request = with_tools(request)
    return request, len(body)


async def prepare_where_it_fits(
    request: ChatCompletionRequest, num_bytes: int, services: Services
) -> PreparedRequest:
    """Prepare a small request at once, and any other in a thread. Raises what `prepare` raises."""
    work = partial(
        prepare,
        request,
        services.engine,
        services.templates,
        services.structure,
        services.settings.max_completion_total,
    )
    is_large = num_bytes > INLINE_BODY_BYTES or request.chat_template is not None
    if is_large or has_grammar(request):
        return await services.preparations.run(work, num_bytes)
    return work()


async def respond(
    http_request: Request,
    services: Services,
    identity: Identity,
    request: ChatCompletionRequest,
    prepared: PreparedRequest,
) -> Response:
    """Generate the answer, as a stream of events or as plain JSON."""
    head = CompletionHead(
        id="chatcmpl-" + secrets.token_hex(12),
        created=int(time.time()),
        model=request.model or "",
        system_fingerprint=services.fingerprint,
        service_tier=UNSET if request.service_tier is None else "default",
    )
    new_parser = prepared.new_parser
    choices = [
        ChoiceState(None if new_parser is None else new_parser()) for _ in range(prepared.params.n)
    ]
    builder = ChunkBuilder(head, _options(request), choices, len(prepared.prediction_token_ids))
    generation = Generation(services, identity, request, http_request, prepared, builder)
    headers = _headers(request, prepared)
    if request.stream:
        return EventStream(
            generation.chunks(),
            keep_alive=services.settings.keep_alive_interval,
            write_timeout=services.settings.write_timeout,
            headers=headers,
        )
    work = collect(generation.chunks(), head, request.metadata)
    try:
        answer = await run_while_connected(http_request.receive, work)
    except ClientDisconnectedError:
        return Response(status_code=CLIENT_GONE)
    return Response(msgspec.json.encode(answer), headers=headers, media_type="application/json")


def _options(request: ChatCompletionRequest) -> ChunkOptions:
    options = request.stream_options if request.stream else None
    return ChunkOptions(
        include_usage=bool(options.include_usage) if options else not request.stream,
        continuous_usage=bool(options and options.continuous_usage_stats),
        obfuscation=bool(options and options.include_obfuscation),
        may_call=bool(request.tools) and request.tool_choice != "none",
        legacy_calls=request.functions is not None,
    )


def _headers(request: ChatCompletionRequest, prepared: PreparedRequest) -> dict[str, str]:
    lists = {
        "x-ignored-params": ignored_params(request),
        "x-unenforced-schema": prepared.unenforced,
    }
    return {name: _name_list(names) for name, names in lists.items() if names}


def _name_list(names: Sequence[str]) -> str:
    """Names that come from the client. Quoting keeps them from breaking the header."""
    text = ", ".join(quote(name, safe="._-[]$", errors="replace") for name in names)
    if len(text) <= MAX_HEADER_BYTES:
        return text
    head = text[:MAX_HEADER_BYTES].rpartition(", ")[0]
    return f"{head}, ..." if head else "..."
