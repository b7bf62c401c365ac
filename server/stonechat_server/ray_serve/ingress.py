"""An ingress: the server's application, whose engine is the replicas."""

import asyncio
import gc
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stonechat_server.ray_serve.engine import connect
from stonechat_server.ray_serve.handle import RayReplicas
from stonechat_server.ray_serve.limits import share_limits
from stonechat_server.ray_serve.wire import decode_description
from stonechat_server.settings import Settings

logger = logging.getLogger("stonechat.ray")

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve.handle import DeploymentHandle

    from stonechat_server.engine_protocol import EngineLike


class Ingress:
    """The deployment class. Ray Serve makes one object in each ingress's process."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self,
        replicas: "DeploymentHandle[Any]",
        settings: Mapping[str, Any],
        capacity: float,
        limits: "DeploymentHandle[Any] | None",
    ) -> None:
        """Wait for a replica, then build the application for `capacity` replicas.

        `limits` is there if there are other ingresses, with which rate limits are shared.
        Raises `KeysFileError`, `LedgerError` or `StorageError`.
        """
        calls = RayReplicas(replicas)
        description = decode_description(await calls.describe())
        self._folder = tempfile.TemporaryDirectory(prefix="stonechat-tokenizer-")
        engine = connect(calls, description, Path(self._folder.name), capacity)
        self._app = make_app(Settings(**settings), engine)
        if limits is not None:
            name, exchange = replica_name(), limits.exchange.remote
            sharing = share_limits(
                self._app.state.server.rate_limiter, lambda charges: exchange(name, charges)
            )
            self._sharing = asyncio.get_running_loop().create_task(sharing)
        gc.freeze()

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """The application; Ray Serve runs its lifespan."""
        return self._app


def replica_name() -> str:
    """The name that Ray Serve gave this process."""
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)


def make_app(settings: Settings, engine: "EngineLike") -> "FastAPI":
    """The application with what the settings name: keys, ledger and files, as `serve` makes it."""
    from stonechat_server.access.auth import access_warnings
    from stonechat_server.access.keys_file import open_key_store
    from stonechat_server.app import create_app
    from stonechat_server.observability.access_log import configure_logging
    from stonechat_server.observability.tracing import Tracing
    from stonechat_server.serving.stores import open_stores

    configure_logging(settings.log_level, settings.log_format)
    key_store = open_key_store(settings.keys_file)
    keys_file = None if key_store is None else key_store.path
    settings = settings.model_copy(update={"keys_file": keys_file})
    ledger, storage, notes = open_stores(settings)
    app = create_app(
        settings,
        engine,
        key_store=key_store,
        ledger=ledger,
        tracing=Tracing.from_environment() if settings.otel else None,
        storage=storage,
    )
    needs_key = not app.state.server.authenticator.is_open
    for text in (*notes, *access_warnings(settings.host, needs_key)):
        logger.warning("%s", text)
    return app
