"""The objects that the routes share. `create_app` makes them; none is global."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from starlette.requests import Request

from stonechat_models import usable_cpus
from stonechat_server.access.auth import Authenticator, Identity, is_rate_limited
from stonechat_server.access.keys import KeyStore
from stonechat_server.admission.controller import Tenants
from stonechat_server.admission.rate_limits import RateLimiter
from stonechat_server.admission.records import FinishedSink
from stonechat_server.catalog.catalog import Catalog
from stonechat_server.catalog.entry import Entry, State
from stonechat_server.catalog.metrics import catalog_metrics
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.media.loading import MediaLoader
from stonechat_server.observability.engine_metrics import LoadedModel
from stonechat_server.observability.ledger import Ledger
from stonechat_server.observability.ledger.sink import record_in
from stonechat_server.observability.metrics import Metrics
from stonechat_server.observability.tracing import Tracing
from stonechat_server.request.body import body_limit
from stonechat_server.request.prepare_pool import Preparations
from stonechat_server.serving.lifecycle import Lifecycle, Phase
from stonechat_server.serving.stored_responses import ResponseStore, store_metrics
from stonechat_server.settings import Settings

MAX_PREPARING = 4
PREPARED_BODIES = 8
"""Bound on the bodies in preparation, running or waiting, in units of `max_body_size`."""


@dataclass(slots=True, kw_only=True)
class Services:
    """What all models of one server share."""

    settings: Settings
    models: Mapping[str, Entry]
    """The models by the names that requests may give. The first is the default."""
    sole: ServedModel | None
    """The only model, which is always loaded. None: there is a catalog."""
    catalog: Catalog | None
    """Loads and unloads several models."""
    authenticator: Authenticator
    rate_limiter: RateLimiter
    lifecycle: Lifecycle
    metrics: Metrics
    preparations: Preparations
    media: MediaLoader
    max_body_bytes: int
    """The longest body of a request, with the images and audio in it."""
    responses: ResponseStore
    ledger: Ledger | None
    tracing: Tracing | None
    sinks: Sequence[FinishedSink]
    """Each is called once with the record of every admitted request that has ended."""

    @classmethod
    def build(
        cls,
        settings: Settings,
        engine: EngineLike | Catalog,
        *,
        key_store: KeyStore | None,
        ledger: Ledger | None,
        tracing: Tracing | None,
        sinks: Sequence[FinishedSink],
    ) -> "Services":
        """Raises `KeysFileError`, and `APIError` for a chat template that does not compile."""
        catalog = engine if isinstance(engine, Catalog) else None
        sole, entries = None, () if catalog is None else catalog.entries
        tenants = Tenants() if catalog is None else catalog.tenants
        if not isinstance(engine, Catalog):
            sole = ServedModel.build(settings, engine, tenants)
            names = tuple(settings.served_model_name) or (engine.model.name,)
            entries = (Entry.of_loaded(names, settings, sole),)
        responses = ResponseStore(
            settings.kept_items_size, settings.kept_responses, settings.kept_responses_age
        )
        metrics_name = "" if sole is None else sole.metrics_name
        metrics = Metrics(
            metrics_name, partial(_loaded, entries), vllm_names=settings.metrics_vllm_names
        )
        metrics.add(partial(store_metrics, responses, metrics_name))
        if catalog is not None:
            metrics.add(partial(catalog_metrics, entries))
        preparations = _preparations(settings)
        lifecycle = Lifecycle(settings.shutdown_grace)
        lifecycle.when_draining(preparations.drain)
        if catalog is not None:
            lifecycle.when_draining(catalog.drain)
        if key_store is None and settings.keys_file is not None:
            key_store = KeyStore(settings.keys_file)
        return cls(
            settings=settings,
            models={name: entry for entry in entries for name in entry.all_names},
            sole=sole,
            catalog=catalog,
            authenticator=Authenticator(
                settings.all_api_keys(), key_store, tenants.rate_limiter.headers
            ),
            rate_limiter=tenants.rate_limiter,
            lifecycle=lifecycle,
            metrics=metrics,
            preparations=preparations,
            media=MediaLoader(settings, metrics.media.loaded),
            max_body_bytes=body_limit(settings),
            responses=responses,
            ledger=ledger,
            tracing=tracing,
            sinks=(*_own_sinks(metrics, ledger, tracing), *sinks),
        )

    @property
    def engine(self) -> EngineLike | Catalog:
        """What the server starts and stops."""
        if self.catalog is not None:
            return self.catalog
        assert self.sole is not None
        return self.sole.engine

    @property
    def is_ready(self) -> bool:
        """False before the start is complete and while draining."""
        return self.lifecycle.phase is Phase.SERVING

    def count_request(self, identity: Identity) -> None:
        """Count a request that generates nothing against its key. Raises `RefusedError`."""
        if is_rate_limited(identity.key):
            self.rate_limiter.charge(identity.key, 0)

    def close(self) -> None:
        """Write what is pending (blocking). The server answers no more requests."""
        self.media.close()
        for entry in set(self.models.values()):
            if entry.served is not None:
                entry.served.structure.close()
        if self.ledger is not None:
            self.ledger.close()
        if self.tracing is not None:
            self.tracing.close()


def _preparations(settings: Settings) -> Preparations:
    return Preparations(
        num_threads=min(MAX_PREPARING, max(1, usable_cpus() // 2)),
        max_waiting=settings.max_queued_requests,
        max_bytes=PREPARED_BODIES * settings.max_body_size,
    )


def _own_sinks(
    metrics: Metrics, ledger: Ledger | None, tracing: Tracing | None
) -> Iterator[FinishedSink]:
    """Yield what the server itself does with the record of a request that has ended."""
    yield metrics.request_finished
    if ledger is not None:
        yield partial(record_in, ledger)
    if tracing is not None:
        yield tracing.request_finished


def _loaded(entries: Sequence[Entry]) -> list[LoadedModel]:
    """What the metrics read of the models that have an engine."""
    return [
        (entry.served.metrics_name, entry.served.engine.stats(), entry.served.admission)
        for entry in entries
        if entry.served is not None and entry.state in (State.LOADED, State.UNLOADING)
    ]


def services_of(request: Request) -> Services:
    """The shared objects of the server that handles this request."""
    return cast(Services, request.app.state.server)
