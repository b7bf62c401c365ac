"""Start the server on a model."""

import errno
import gc
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from stonechat_server.options import BaseOptions, UserError, option
from stonechat_server.settings import Settings, refuse_for_one_model
from stonechat_server.terminal.suggest import nearest

if TYPE_CHECKING:
    from stonechat_server.access.keys import KeyStore
    from stonechat_server.catalog.catalog import Catalog
    from stonechat_server.catalog.entry import Entry
    from stonechat_server.catalog.served_model import ServedModel
    from stonechat_server.engine_protocol import EngineLike
    from stonechat_server.serving.services import Services


KUBERNETES = ("service_", "port_")
"""How the variables begin that Kubernetes sets for a service, behind its name."""


class Options(BaseOptions):
    """The options of `stonechat serve`: a flag for every setting."""

    settings: Settings
    more_models: tuple[str, ...] = option(
        (), "further models, which are loaded when a request names them", flag="MORE", nargs="*"
    )


def run(options: Options) -> int:
    """Serve until a signal arrives. Raises `UserError` or `EngineError` if it cannot start."""
    gc.disable()  # objects made at start live on, so a collection frees nothing
    settings = options.settings
    from stonechat_server.access.keys_file import open_key_store
    from stonechat_server.observability.access_log import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        raise UserError(listen_problem(settings.host, settings.port, error)) from error
    with listener:
        if problem := _problem(settings):
            raise UserError(problem)
        entries = _entries(settings, options.more_models)
        key_store = open_key_store(settings.keys_file)
        keys_file = None if key_store is None else key_store.path
        settings = settings.model_copy(update={"keys_file": keys_file})
        return _serve(settings, entries, key_store, listener)


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


def listen_problem(host: str, port: int, error: OSError) -> str:
    """Why the server cannot listen there, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} is in use on {host}: another program listens there, perhaps a server "
            "that runs already; choose another port with --port, or any free one with --port 0"
        )
    if error.errno == errno.EACCES:
        return f"port {port} is for programs of the administrator; choose one, such as --port 8000"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return (
            f"this machine has no address {host}; use --host 127.0.0.1 for this machine alone, or "
            "--host 0.0.0.0 for all who can reach it"
        )
    return f"cannot listen on {host}:{port}: {error.strerror or error}"


def _entries(settings: Settings, more_models: Sequence[str]) -> "Sequence[Entry]":
    """The models, if there may be several. Raises `UserError`."""
    if not settings.models and not more_models:
        refuse_for_one_model(settings)
        return ()
    from stonechat_server.catalog.specs import model_entries

    return model_entries(settings, more_models)


def _serve(
    settings: Settings,
    entries: "Sequence[Entry]",
    key_store: "KeyStore | None",
    listener: socket.socket,
) -> int:
    from stonechat_models import AsyncEngine
    from stonechat_server.errors import APIError
    from stonechat_server.observability.tracing import Tracing
    from stonechat_server.serving.stores import open_stores

    try:
        ledger, storage, notes = open_stores(settings)
        tracing = Tracing.from_environment() if settings.otel else None
        engine: EngineLike | Catalog
        if entries:
            engine = _catalog(settings, entries)
        else:
            config = settings.engine_config()
            engine = AsyncEngine.from_config(config, _progress, _import_server)
        from stonechat_server.app import create_app
        from stonechat_server.serving.http_server import serve

        app = create_app(
            settings, engine, key_store=key_store, ledger=ledger, tracing=tracing, storage=storage
        )
    except APIError as error:  # the chat template does not compile
        raise UserError(error.message) from error
    except OSError as error:
        raise UserError(_file_problem(error)) from error
    state = app.state.server
    url = base_url(settings.host, listener, "http" if settings.tls_cert is None else "https")
    gc.freeze()  # otherwise each full collection scans these objects and pauses the streams
    gc.enable()
    try:
        return serve(
            app,
            listener,
            lambda: _has_started(state, url, notes),
            tls_cert=settings.tls_cert,
            tls_key=settings.tls_key,
        )
    finally:
        gc.unfreeze()  # libraries look for leaks at the end


def _catalog(settings: Settings, entries: "Sequence[Entry]") -> "Catalog":
    from stonechat_server.catalog.catalog import Catalog
    from stonechat_server.catalog.loader import ProcessLoader

    return Catalog(entries, ProcessLoader(), settings)


def _has_started(state: "Services", url: str, notes: Sequence[str]) -> bool:
    """Print the banner, or why the models that are to be there from the start are not."""
    errors = [] if state.catalog is None else state.catalog.start_errors
    for error in errors:
        print(f"stonechat serve: {error.message}", file=sys.stderr)
    if not errors:
        print(_banner(state, url, notes), flush=True)
    return not errors


def _banner(state: "Services", url: str, notes: Sequence[str]) -> str:
    from stonechat_server.access.auth import access_warnings
    from stonechat_server.commands.banner import models_banner, start_banner

    settings, needs_key = state.settings, not state.authenticator.is_open
    warnings = [*notes, *_misspelt_variables(), *access_warnings(settings.host, needs_key)]
    if state.sole is None:
        return models_banner(list(dict.fromkeys(state.models.values())), url, needs_key, warnings)
    name, model = next(iter(state.models)), state.sole.engine.model
    warnings = [*_warnings(state.sole), *warnings]
    limits = (settings.max_images, settings.max_audio_clips, settings.max_videos)
    return start_banner(model, name, url, needs_key, warnings, *limits)


def _import_server() -> None:
    """Import what serves, which takes a second, while the model loads."""
    for name in ("app", "commands.banner", "serving.http_server", "serving.lifecycle"):
        import_module(f"stonechat_server.{name}")


def _problem(settings: Settings) -> str | None:
    """What is wrong with names, API keys and certificates; told before the model loads."""
    import ssl

    if (settings.tls_cert is None) != (settings.tls_key is None):
        return "--tls-cert and --tls-key must be given together"
    names = {text.partition("=")[0].strip() for text in settings.lora}
    if shared := names.intersection(settings.served_model_name):
        return f"{min(shared)} names the model and an adapter: give --lora another name"
    try:
        settings.all_api_keys()
        for file in filter(None, (settings.tls_cert, settings.tls_key)):
            file.read_bytes()
        if settings.tls_cert is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except ssl.SSLError:
        return (
            f"{settings.tls_cert} and {settings.tls_key} are not a certificate and its private key "
            "in PEM form"
        )
    except OSError as error:
        return _file_problem(error)
    except UnicodeDecodeError:
        return f"{settings.api_key_file} is not a text file in UTF-8"
    except UserError as error:
        return str(error)
    return None


def _file_problem(error: OSError) -> str:
    return f"cannot read {error.filename}: {error.strerror}" if error.filename else str(error)


def _warnings(model: "ServedModel") -> list[str]:
    """What an operator should know of the model's files and its chat template."""
    from stonechat_server.prompt.chat_template import NO_TEMPLATE

    info = model.engine.model
    if not info.generates:
        return list(info.notes)
    tools = model.structure.warning(model.templates.default.source)
    no_template = NO_TEMPLATE if model.templates.is_plain else None
    return [*(text for text in (no_template, tools) if text is not None), *info.notes]


def _misspelt_variables() -> Iterator[str]:
    """Yield a warning for each variable that looks like a setting. Others have their own users."""
    settings = {*Settings.model_fields, "config"}
    for variable in sorted(os.environ):
        prefix, name = variable[:10].upper(), variable[10:].lower()
        if prefix != "STONECHAT_" or name in settings or name.startswith(KUBERNETES):
            continue
        if meant := nearest(name, settings):
            yield f"{variable} is no setting; did you mean STONECHAT_{meant.upper()}?"


def base_url(host: str, listener: socket.socket, scheme: str = "http") -> str:
    """The URL at which a client on this machine reaches the server."""
    port = listener.getsockname()[1]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return (
        f"{scheme}://[{reachable}]:{port}" if ":" in reachable else f"{scheme}://{reachable}:{port}"
    )


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
