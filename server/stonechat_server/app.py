"""Builds the ASGI application around a given engine: routes, error answers and lifespan."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from stonechat_models import EngineError, __version__, usable_cpus
from stonechat_server.access.auth import Authenticator
from stonechat_server.access.browser_guard import BrowserGuard, own_names
from stonechat_server.access.keys import KeyStore
from stonechat_server.admission.records import FinishedSink
from stonechat_server.api import chat, health, metrics, models
from stonechat_server.api.openapi import openapi_document
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.errors import APIError, to_api_error
from stonechat_server.observability.access_log import RequestContext
from stonechat_server.observability.ledger import Ledger
from stonechat_server.observability.tracing import Tracing
from stonechat_server.page.routes import page_router
from stonechat_server.prompt.template_choice import Templates
from stonechat_server.request.prepare_pool import Preparations
from stonechat_server.serving.fingerprint import system_fingerprint
from stonechat_server.serving.gate import Operations
from stonechat_server.serving.generation import CLIENT_GONE
from stonechat_server.serving.services import Services
from stonechat_server.settings import Settings
from stonechat_server.streaming.disconnect import ClientDisconnectedError
from stonechat_server.structured.answer_spec import Structure

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

MAX_PREPARING = 4
PREPARED_BODIES = 8
"""Bound on the bodies in preparation, running or waiting, in units of `max_body_size`."""

CLIENT_LEFT = (ClientDisconnectedError, ClientDisconnect)
"""The client disconnected while its answer was made, or before its body was read."""


def create_app(
    settings: Settings,
    engine: EngineLike,
    *,
    ledger: Ledger | None = None,
    tracing: Tracing | None = None,
    sinks: Sequence[FinishedSink] = (),
) -> FastAPI:
    """Return an ASGI app whose lifespan starts and stops `engine`.

    When an admitted request has ended, each of `sinks` and each sink of the operations is called
    once with its record. The end of the lifespan closes the ledger and the tracing.
    Raises `KeysFileError`.
    """
    operations = Operations(settings, engine, ledger=ledger, tracing=tracing)
    store = None if settings.keys_file is None else KeyStore(settings.keys_file)
    state = Services(
        settings=settings,
        engine=engine,
        templates=Templates(
            engine.tokenizer, settings.chat_template, settings.allow_request_templates
        ),
        structure=Structure(
            engine.tokenizer,
            settings.tool_format,
            schema_in_prompt=settings.schema_in_prompt,
            has_reasoning=settings.reasoning,
        ),
        authenticator=Authenticator(
            settings.all_api_keys(), store, operations.admission.rate_limiter.headers
        ),
        operations=operations,
        preparations=Preparations(
            num_threads=min(MAX_PREPARING, max(1, usable_cpus() // 2)),
            max_waiting=settings.max_queued_requests,
            max_bytes=PREPARED_BODIES * settings.max_body_size,
        ),
        sinks=(*operations.sinks, *sinks),
        model_names=tuple(settings.served_model_name) or (engine.model.name,),
        fingerprint=system_fingerprint(engine.model),
        created=int(time.time()),
    )
    app = FastAPI(
        title="Stonechat",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,  # its page loads scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.server = state
    for error_class in (APIError, EngineError, HTTPException, *CLIENT_LEFT):
        app.add_exception_handler(error_class, _on_known_error)
    app.add_middleware(
        BrowserGuard,
        cors_origins=settings.cors_origin,
        allowed_hosts=_allowed_hosts(state),
    )
    app.add_middleware(RequestContext, on_response=operations.metrics.responded)
    for module in (chat, models, health, metrics):
        app.include_router(module.router)
    app.openapi = lambda: openapi_document(app)  # type: ignore[method-assign]
    app.include_router(page_router())
    return app


def _allowed_hosts(state: Services) -> set[str] | None:
    """The `Host` names that an open server on this machine answers to, or None for any name."""
    settings = state.settings
    if not state.authenticator.is_open or settings.host not in LOOPBACK:
        return None
    return own_names(settings.host, settings.allowed_host)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: Services = app.state.server
    await state.engine.start()
    state.operations.lifecycle.serving()
    try:
        yield
    finally:
        state.operations.lifecycle.begin_drain()
        await state.engine.shutdown()
        state.preparations.close()
        await asyncio.to_thread(state.operations.close)


async def _on_known_error(request: Request, error: Exception) -> Response:
    if isinstance(error, CLIENT_LEFT):
        return Response(status_code=CLIENT_GONE)
    api_error = to_api_error(error)
    if api_error is None:
        raise error  # RequestContext logs it and answers 500
    return api_error.response()
