"""Start the server on a model."""

import gc
import socket
import sys
from typing import TYPE_CHECKING

from stonechat_server.options import BaseOptions
from stonechat_server.settings import Settings

if TYPE_CHECKING:
    from stonechat_models import ModelInfo
    from stonechat_server.engine_protocol import EngineLike
    from stonechat_server.observability.ledger import Ledger
    from stonechat_server.serving.services import Services


class Options(BaseOptions):
    """The options of `stonechat serve`: a flag for every setting."""

    settings: Settings


def run(options: Options) -> int:
    """Serve until a signal arrives. Returns 1 if the server cannot start."""
    gc.disable()  # objects made at start live on, so a collection frees nothing
    settings = options.settings
    from stonechat_server.observability.access_log import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        return _fail(f"cannot listen on {settings.host}:{settings.port}: {error}")
    with listener:
        return _serve(settings, listener)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Bind it before the model loads, so that a port in use is reported at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _serve(settings: Settings, listener: socket.socket) -> int:
    from stonechat_models import AsyncEngine, EngineError
    from stonechat_server.access.keys import KeysFileError
    from stonechat_server.app import create_app
    from stonechat_server.commands.banner import start_banner
    from stonechat_server.errors import APIError
    from stonechat_server.observability.ledger import LedgerError
    from stonechat_server.observability.tracing import Tracing, TracingUnavailableError
    from stonechat_server.serving.http_server import serve

    if (settings.tls_cert is None) != (settings.tls_key is None):
        return _fail("--tls-cert and --tls-key must be given together")
    try:
        ledger = _open_ledger(settings)
        tracing = Tracing.from_environment() if settings.otel else None
        engine: EngineLike = AsyncEngine.from_config(settings.engine_config(), _progress)
        app = create_app(settings, engine, ledger=ledger, tracing=tracing)
    except (
        EngineError,
        APIError,  # the chat template does not compile
        KeysFileError,
        LedgerError,
        TracingUnavailableError,
        OSError,
    ) as error:
        return _fail(str(error))
    state = app.state.server
    banner = start_banner(
        engine.model,
        state.model_names[0],
        base_url(settings.host, listener, "http" if settings.tls_cert is None else "https"),
        not state.authenticator.is_open,
        _warnings(state, engine.model),
    )
    gc.freeze()  # otherwise each full collection scans these objects and pauses the streams
    gc.enable()
    return serve(
        app,
        listener,
        lambda: print(banner, flush=True),
        tls_cert=settings.tls_cert,
        tls_key=settings.tls_key,
    )


def _warnings(state: "Services", model: "ModelInfo") -> list[str]:
    """What an operator should know of the model's files and its chat template."""
    from stonechat_server.prompt.chat_template import NO_TEMPLATE

    tools = state.structure.warning(state.templates.default.source)
    no_template = NO_TEMPLATE if state.templates.is_plain else None
    return [*(text for text in (no_template, tools) if text is not None), *model.notes]


def _open_ledger(settings: Settings) -> "Ledger | None":
    """The ledger that the settings name. Raises `LedgerError`."""
    from stonechat_server.observability.ledger import Ledger
    from stonechat_server.observability.ledger.location import ledger_place

    place = ledger_place(settings.ledger, settings.ledger_journal)
    return None if place is None else Ledger(place.url, place.journal)


def base_url(host: str, listener: socket.socket, scheme: str = "http") -> str:
    """The URL at which a client on this machine reaches the server."""
    port = listener.getsockname()[1]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return (
        f"{scheme}://[{reachable}]:{port}" if ":" in reachable else f"{scheme}://{reachable}:{port}"
    )


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fail(message: str) -> int:
    print(f"stonechat serve: {message}", file=sys.stderr)
    return 1
