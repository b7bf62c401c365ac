"""`POST /v1/chat/completions`."""

import secrets
import time
from dataclasses import replace
from functools import partial
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from stonechat_server.access.auth import check_model
from stonechat_server.api.openapi import CHAT_EXTRA, CHAT_RESPONSES
from stonechat_server.errors import APIError
from stonechat_server.request.body import (
    check_json,
    check_messages,
    discard_body,
    limit_length,
    read_body,
)
from stonechat_server.request.field_checks import check_unknown, ignored_params
from stonechat_server.request.legacy_functions import with_tools
from stonechat_server.request.parse import parse_request
from stonechat_server.request.prepare import PreparedRequest, has_grammar, prepare
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.serving.generation import CLIENT_GONE, Generation
from stonechat_server.serving.services import Services, services_of
from stonechat_server.streaming.chunks import ChunkBuilder, ChunkOptions, CompletionHead
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
    state = services_of(http_request)
    identity = state.authenticator.identify(http_request)
    try:
        state.operations.refuse_early(identity)
        content_length = http_request.headers.get("content-length", "")
        if content_length.isdigit() and int(content_length) > INLINE_BODY_BYTES:
            with state.operations.counting_refusals():
                state.preparations.check(int(content_length))
    except APIError:
        await discard_body(http_request, state.settings)
        raise
    body = await read_body(http_request, state.settings)
    check_json(body, state.settings)
    request = parse_request(body)
    check_model(request.model, state.model_names, identity)
    check_messages(request, state.settings)
    if state.settings.strict_params:
        check_unknown(request)
    request = with_tools(request)
    prepared = await _prepare(state, request, len(body))
    prepared = replace(prepared, params=limit_length(prepared.params, request, state.settings))
    head = _head(state, request)
    generation = Generation(
        state,
        identity,
        request,
        http_request,
        prepared,
        ChunkBuilder.create(
            head,
            _options(request),
            prepared.params.n,
            prepared.new_parser,
            prepared.prediction_token_ids,
        ),
    )
    headers = _headers(request)
    if request.stream:
        return EventStream(
            generation.chunks(),
            keep_alive=state.settings.keep_alive_interval,
            write_timeout=state.settings.write_timeout,
            headers=headers,
        )
    work = collect(generation.chunks(), head, request.metadata)
    try:
        answer = await run_while_connected(http_request.receive, work)
    except ClientDisconnectedError:
        return Response(status_code=CLIENT_GONE)
    return Response(msgspec.json.encode(answer), headers=headers, media_type="application/json")


async def _prepare(state: Services, request: ChatCompletionRequest, size: int) -> PreparedRequest:
    work = partial(prepare, request, state.engine, state.templates, state.structure)
    has_own_template = request.chat_template is not None
    if size <= INLINE_BODY_BYTES and not has_grammar(request) and not has_own_template:
        return work()
    with state.operations.counting_refusals():
        return await state.preparations.run(work, size)


def _head(state: Services, request: ChatCompletionRequest) -> CompletionHead:
    return CompletionHead(
        id="chatcmpl-" + secrets.token_hex(12),
        created=int(time.time()),
        model=request.model,
        system_fingerprint=state.fingerprint,
        service_tier=UNSET if request.service_tier is None else "default",
    )


def _options(request: ChatCompletionRequest) -> ChunkOptions:
    options = request.stream_options
    may_call = bool(request.tools) and request.tool_choice != "none"
    is_legacy = request.functions is not None
    if not request.stream or options is None:
        return ChunkOptions(
            include_usage=not request.stream, may_call=may_call, legacy_calls=is_legacy
        )
    return ChunkOptions(
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        obfuscation=bool(options.include_obfuscation),
        may_call=may_call,
        legacy_calls=is_legacy,
    )


def _headers(request: ChatCompletionRequest) -> dict[str, str]:
    ignored = ignored_params(request)
    if not ignored:
        return {}
    # The names come from the client. Quoting keeps them from breaking the header.
    names = [quote(name, safe="._-") for name in ignored]
    text = ", ".join(names)
    if len(text) > MAX_HEADER_BYTES:
        text = text[:MAX_HEADER_BYTES].rpartition(", ")[0] + ", ..."
    return {"x-ignored-params": text}
