"""The application: routes, error answers and lifespan around an engine that is handed in."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from stonechat_models import EngineError, __version__
from stonechat_server.admission import Admission, FinishedSink, OpenAdmission, log_finished
from stonechat_server.auth import Authenticator
from stonechat_server.disconnect import ClientDisconnectedError
from stonechat_server.engine import EngineLike
from stonechat_server.errors import APIError, to_api_error
from stonechat_server.fingerprint import system_fingerprint
from stonechat_server.generation import CLIENT_GONE
from stonechat_server.logs import RequestContext
from stonechat_server.routes import chat, health, models
from stonechat_server.settings import Settings
from stonechat_server.state import ServerState
from stonechat_server.templates import Templates


def create_app(
    settings: Settings,
    engine: EngineLike,
    *,
    admission: Admission | None = None,
    sinks: Sequence[FinishedSink] = (log_finished,),
) -> FastAPI:
    """An ASGI app that starts and stops `engine` with its own lifespan.

    `sinks` are called once for every request that reached the engine, when it has ended.
    """
    state = ServerState(
        settings=settings,
        engine=engine,
        templates=Templates(
            engine.tokenizer, settings.chat_template, settings.allow_request_templates
        ),
        authenticator=Authenticator(settings.all_api_keys()),
        admission=admission or OpenAdmission(),
        sinks=tuple(sinks),
        model_names=tuple(settings.served_model_name) or (engine.model.name,),
        fingerprint=system_fingerprint(engine.model),
        created=int(time.time()),
    )
    app = FastAPI(
        title="Stonechat",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.server = state
    for kind in (APIError, EngineError, HTTPException, ClientDisconnectedError):
        app.add_exception_handler(kind, _on_known_error)
    app.add_middleware(RequestContext)
    for module in (chat, models, health):
        app.include_router(module.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: ServerState = app.state.server
    await state.engine.start()
    state.is_ready = True
    try:
        yield
    finally:
        state.is_ready = False
        await state.engine.shutdown()


async def _on_known_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnectedError):
        return Response(status_code=CLIENT_GONE)
    known = to_api_error(error)
    if known is None:
        raise error  # RequestContext logs it and answers 500
    return known.response()
