"""Builds the ASGI application around a given engine: routes, error answers and lifespan."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from stonechat_models import EngineError, __version__
from stonechat_server.access.auth import LOOPBACK, Identity, check_model
from stonechat_server.access.browser_guard import BrowserGuard, own_names
from stonechat_server.access.keys import KeyStore
from stonechat_server.admission.records import FinishedSink
from stonechat_server.api import (
    batches,
    files,
    generation,
    health,
    messages,
    models,
    ollama,
    render,
    responses,
    tokens,
    transcriptions,
)
from stonechat_server.api.batch_lines import answer_line
from stonechat_server.api.openapi.document import openapi_document
from stonechat_server.api.unknown_paths import ServedPaths
from stonechat_server.batches_api.metrics import batch_metrics
from stonechat_server.batches_api.run import Collaborators
from stonechat_server.batches_api.runner import BatchRunner
from stonechat_server.catalog.catalog import Catalog
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.errors import APIError, to_api_error
from stonechat_server.messages_api.errors import error_body as messages_error
from stonechat_server.messages_api.errors import is_for_anthropic
from stonechat_server.observability.access_log import RequestContext
from stonechat_server.observability.ledger import Ledger
from stonechat_server.observability.tracing import Tracing
from stonechat_server.ollama_api.errors import OllamaError, is_for_ollama
from stonechat_server.page.routes import page_router
from stonechat_server.serving.generation import CLIENT_GONE
from stonechat_server.serving.services import Services
from stonechat_server.settings import Settings
from stonechat_server.storage.storage import Storage
from stonechat_server.streaming.sse import ClientDisconnectedError

CLIENT_LEFT = (ClientDisconnectedError, ClientDisconnect)
"""The client disconnected while its answer was made, or before its body was read."""

CPU_BATCH_REQUESTS = 32
"""How many requests of batches run at once by default on a CPU, and on a server with several
models. With more of them each step takes longer, which other requests feel."""

ROUTES = (
    *(generation, responses, messages, transcriptions),
    *(files, batches, ollama, render, tokens, models, health),
)


def create_app(
    settings: Settings,
    engine: EngineLike | Catalog,
    *,
    key_store: KeyStore | None = None,
    ledger: Ledger | None = None,
    tracing: Tracing | None = None,
    sinks: Sequence[FinishedSink] = (),
    storage: Storage | None = None,
) -> FastAPI:
    """Return an ASGI app whose lifespan starts and stops `engine`: the only one, or several.

    Without `key_store`, the keys are those of the keys file that the settings name, if any. When an
    admitted request has ended, each of `sinks` is called once with its record. Without `storage`,
    no files are kept. The end of the lifespan closes the ledger, the tracing and the storage.
    Raises `KeysFileError`.
    """
    services = Services.build(
        settings, engine, key_store=key_store, ledger=ledger, tracing=tracing, sinks=sinks
    )
    app = FastAPI(
        title="Stonechat",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,  # its page loads scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.server, app.state.paths = services, ServedPaths(app)
    app.state.storage = storage
    app.state.batches = None if storage is None else _batch_runner(app, services, storage)
    for error_class in (APIError, EngineError, HTTPException, *CLIENT_LEFT):
        app.add_exception_handler(error_class, _on_known_error)
    app.add_middleware(
        BrowserGuard,
        cors_origins=settings.cors_origin,
        allowed_hosts=_allowed_hosts(services),
        error_answer=_error_answer,
    )
    app.add_middleware(
        RequestContext, on_response=services.metrics.responded, error_answer=_error_answer
    )
    for module in ROUTES:
        app.include_router(module.router)
    app.openapi = lambda: openapi_document(  # type: ignore[method-assign]
        app, needs_key=not services.authenticator.is_open
    )
    app.include_router(page_router())
    return app


def _batch_runner(app: FastAPI, services: Services, storage: Storage) -> BatchRunner:
    settings = services.settings

    def model_of(name: str | None, identity: Identity) -> str:
        return check_model(name, services.models, identity)

    runner = BatchRunner(
        Collaborators(
            storage=storage,
            answer=partial(answer_line, app),
            find_owner=services.authenticator.for_batches,
            model_of=model_of,
            is_served=services.models.__contains__,
            max_body_bytes=services.max_body_bytes,
            num_at_once=settings.batch_concurrency or _num_batch_requests(services),
        )
    )
    services.lifecycle.when_draining(runner.drain)
    services.metrics.add(partial(batch_metrics, runner))
    return runner


def _num_batch_requests(services: Services) -> int:
    """How many requests of batches run at once by default."""
    if services.sole is None:
        return CPU_BATCH_REQUESTS
    model = services.sole.engine.model
    is_cpu = model.device == "cpu"
    return min(model.max_num_seqs, CPU_BATCH_REQUESTS) if is_cpu else model.max_num_seqs


def _allowed_hosts(services: Services) -> set[str] | None:
    """The `Host` names that an open server on this machine answers to, or None for any name."""
    settings = services.settings
    if not services.authenticator.is_open or settings.host not in LOOPBACK:
        return None
    return own_names(settings.host, settings.allowed_host)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.server
    engine = services.engine
    await engine.start()
    services.lifecycle.serving()
    runner: BatchRunner | None = app.state.batches
    if runner is not None:
        runner.start()
    try:
        yield
    finally:
        services.lifecycle.begin_drain()
        if runner is not None:
            await runner.close()
        await engine.shutdown()
        services.preparations.close()
        await asyncio.to_thread(services.close)
        if app.state.storage is not None:
            await asyncio.to_thread(app.state.storage.close)


async def _on_known_error(request: Request, error: Exception) -> Response:
    if isinstance(error, CLIENT_LEFT):
        return Response(status_code=CLIENT_GONE)
    api_error = to_api_error(error)
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        paths: ServedPaths = request.app.state.paths
        api_error = paths.explain(error, request.method, request.scope["path"])
    if api_error is None:
        raise error  # RequestContext logs it and answers 500
    return _error_answer(api_error, request.scope)


def _error_answer(error: APIError, scope: Scope) -> Response:
    if is_for_ollama(scope):
        return error.response(OllamaError(error.message))
    if not is_for_anthropic(scope):
        return error.response()
    return error.response(messages_error(error, scope["state"].get("request_id", "")))
