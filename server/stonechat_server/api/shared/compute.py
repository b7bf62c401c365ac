"""What the routes do that answer from a body without generating: receive, compute, respond."""

import time
from collections.abc import Callable, Sequence
from typing import cast

import msgspec
from fastapi import Request, Response

from stonechat_server.admission.refusals import RefusedError
from stonechat_server.api.shared.generate import name_list, receive, run_where_it_fits
from stonechat_server.api.shared.media_loading import load_media
from stonechat_server.api.shared.on_demand import tokenizer_of
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.request.prepare import render
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.serving.endpoint import Call, Endpoint
from stonechat_server.serving.services import services_of

Work = Callable[[Call, ServedModel], object]
"""Computes an answer that msgspec encodes. May run in any thread, and raise `APIError`."""


async def compute(http_request: Request, endpoint: Endpoint, work: Work) -> Response:
    """Answer a request with what `work` makes of it.

    The work on a large body, or on one that may take long, is done in a thread, as is the encoding
    of its answer.
    """
    services = services_of(http_request)
    identity = services.authenticator.identify(http_request)

    def encoded(call: Call, model: ServedModel) -> bytes:
        return msgspec.json.encode(work(call, model))

    started = time.monotonic()
    try:
        received = await receive(http_request, services, identity, endpoint)
        services.count_request(identity)
        call, received.started = received.call, started
        name, needs_engine = call.request.model or "", bool(call.media)
        model = await tokenizer_of(http_request, services, name, needs_engine=needs_engine)
        if call.media:
            await load_media(received, model)
        content = await run_where_it_fits(encoded, received, model)
    except RefusedError as error:
        services.metrics.refused(error.reason, endpoint.path)
        raise
    return Response(content, headers=_headers(call.ignored), media_type="application/json")


async def count_prompt(
    http_request: Request, endpoint: Endpoint, answer: Callable[[int], object]
) -> Response:
    """Answer with how many tokens the prompt of a conversation has, however long it is."""

    def counted(call: Call, model: ServedModel) -> object:
        request = cast(ChatCompletionRequest, call.request)
        prompt = render(request, model.engine, model.templates, model.structure)
        return answer(len(prompt.token_ids))

    return await compute(http_request, endpoint, counted)


def _headers(ignored: Sequence[str]) -> dict[str, str]:
    return {"x-ignored-params": name_list(ignored)} if ignored else {}
