"""The objects that the routes share. `create_app` makes them; none is global."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from stonechat_models import ModelInfo, usable_cpus
from stonechat_server.access.auth import Authenticator
from stonechat_server.access.keys import KeyStore
from stonechat_server.admission.controller import AdmissionControl, AdmissionLimits
from stonechat_server.admission.records import FinishedSink, log_finished
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.observability.ledger import Ledger
from stonechat_server.observability.ledger.sink import LedgerSink
from stonechat_server.observability.metrics import Metrics
from stonechat_server.observability.tracing import Tracing
from stonechat_server.prompt.chat_template import Templates
from stonechat_server.request.prepare_pool import Preparations
from stonechat_server.serving.fingerprint import system_fingerprint
from stonechat_server.serving.kept_items import KeptItems
from stonechat_server.serving.lifecycle import Lifecycle, Phase
from stonechat_server.settings import Settings
from stonechat_server.structured.answer_spec import Structure

CACHE_OVERCOMMIT = 4
"""Admitted requests may expect this many times the tokens of the KV cache. Few use all of their
limit, and the engine preempts if they do."""
EMBEDDING_BATCHES = 8
"""Admitted requests to an embedding model fill at most this many batches."""
EMBEDDING_SHARE = 0.25
"""A list of texts holds at most this part of them, so that others do not wait for all of it."""
MAX_PREPARING = 4
PREPARED_BODIES = 8
"""Bound on the bodies in preparation, running or waiting, in units of `max_body_size`."""


@dataclass(slots=True, kw_only=True)
class Services:
    """The shared objects of one server."""

    settings: Settings
    engine: EngineLike
    templates: Templates
    structure: Structure
    authenticator: Authenticator
    admission: AdmissionControl
    lifecycle: Lifecycle
    metrics: Metrics
    preparations: Preparations
    kept_items: KeptItems
    ledger: Ledger | None
    tracing: Tracing | None
    sinks: Sequence[FinishedSink]
    """Each is called once with the record of every admitted request that has ended."""
    model_names: tuple[str, ...]
    fingerprint: str
    created: int

    @classmethod
    def build(
        cls,
        settings: Settings,
        engine: EngineLike,
        *,
        key_store: KeyStore | None,
        ledger: Ledger | None,
        tracing: Tracing | None,
        sinks: Sequence[FinishedSink],
    ) -> "Services":
        """Raises `KeysFileError`, and `APIError` for a chat template that does not compile."""
        admission = AdmissionControl(_limits(settings, engine.model))
        metrics = Metrics(
            engine.model.name, engine.stats, admission, vllm_names=settings.metrics_vllm_names
        )
        own_sinks: list[FinishedSink] = [log_finished, metrics.request_finished]
        if ledger is not None:
            own_sinks.append(LedgerSink(ledger))
        if tracing is not None:
            own_sinks.append(tracing.request_finished)
        preparations = Preparations(
            num_threads=min(MAX_PREPARING, max(1, usable_cpus() // 2)),
            max_waiting=settings.max_queued_requests,
            max_bytes=PREPARED_BODIES * settings.max_body_size,
        )
        lifecycle = Lifecycle(settings.shutdown_grace)
        lifecycle.when_draining(preparations.drain)
        if key_store is None and settings.keys_file is not None:
            key_store = KeyStore(settings.keys_file)
        return cls(
            settings=settings,
            engine=engine,
            templates=Templates(
                engine.tokenizer,
                settings.chat_template,
                settings.allow_request_templates,
                special_tokens_as_text=settings.special_tokens_as_text,
            ),
            structure=Structure(
                engine.tokenizer,
                settings.tool_format,
                schema_in_prompt=settings.schema_in_prompt,
                has_reasoning=settings.reasoning,
                bare_calls=settings.bare_calls,
                stop_repeated_calls=settings.stop_repeated_calls,
            ),
            authenticator=Authenticator(
                settings.all_api_keys(), key_store, admission.rate_limiter.headers
            ),
            admission=admission,
            lifecycle=lifecycle,
            metrics=metrics,
            preparations=preparations,
            kept_items=KeptItems(settings.kept_items_size),
            ledger=ledger,
            tracing=tracing,
            sinks=(*own_sinks, *sinks),
            model_names=tuple(settings.served_model_name) or (engine.model.name,),
            fingerprint=system_fingerprint(engine.model),
            created=int(time.time()),
        )

    @property
    def is_ready(self) -> bool:
        """False before the start is complete and while draining."""
        return self.lifecycle.phase is Phase.SERVING

    def close(self) -> None:
        """Write what is pending (blocking). The server answers no more requests."""
        self.structure.close()
        if self.ledger is not None:
            self.ledger.close()
        if self.tracing is not None:
            self.tracing.close()


def services_of(request: Request) -> Services:
    """The shared objects of the server that handles this request."""
    return cast(Services, request.app.state.server)


def _limits(settings: Settings, model: ModelInfo) -> AdmissionLimits:
    """Bounds from the settings, or else from the size of the engine.

    Slightly more requests are admitted than the engine runs at once, so that it never waits. An
    embedding model gets the texts of several batches, to choose those of similar length.
    """
    if model.generates:
        num_sequences = model.max_num_seqs + max(1, model.max_num_seqs // 8)
        num_tokens = model.kv_capacity_tokens * CACHE_OVERCOMMIT
    else:
        num_sequences = model.max_num_seqs * EMBEDDING_BATCHES
        num_tokens = max(model.max_batch_tokens, model.max_model_len) * EMBEDDING_BATCHES
    return AdmissionLimits(
        max_running_sequences=num_sequences,
        max_running_tokens=num_tokens,
        max_queued_requests=settings.max_queued_requests,
        max_queued_tokens=settings.max_queued_tokens or num_tokens * 16,
        max_share=0.5 if model.generates else EMBEDDING_SHARE,
    )
