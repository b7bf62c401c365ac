"""What serves the requests to one model that is loaded."""

import time
from dataclasses import dataclass, field, replace

from stonechat_models import ModelInfo
from stonechat_server.admission.controller import AdmissionControl, AdmissionLimits
from stonechat_server.admission.rate_limits import RateLimiter
from stonechat_server.catalog.fingerprint import system_fingerprint
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.prompt.chat_template import Templates
from stonechat_server.settings import Settings
from stonechat_server.structured.answer_spec import Structure

CACHE_OVERCOMMIT = 4
"""Admitted requests may expect this many times the tokens of the KV cache. Few use all of their
limit, and the engine preempts if they do."""
EMBEDDING_BATCHES = 8
"""Admitted requests to an embedding model fill at most this many batches."""
EMBEDDING_SHARE = 0.25
"""A list of texts holds at most this part of them, so that others do not wait for all of it."""


@dataclass(slots=True, kw_only=True)
class ServedModel:
    """An engine, and what the server makes of its model's files."""

    settings: Settings
    """Those of the server, with those of this model."""
    engine: EngineLike
    templates: Templates
    structure: Structure
    admission: AdmissionControl
    fingerprint: str
    adapter: str = ""
    """The LoRA adapter that the engine computes beside its model. Empty: none."""
    parent: str | None = None
    """The name of the model without the adapter, if there is one."""
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def build(
        cls, settings: Settings, engine: EngineLike, rate_limiter: RateLimiter
    ) -> "ServedModel":
        """Raises `APIError` for a chat template that does not compile."""
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
            admission=AdmissionControl(_limits(settings, engine.model), rate_limiter),
            fingerprint=system_fingerprint(engine.model),
        )

    def with_adapters(self, name: str) -> "dict[str, ServedModel]":
        """The same model, which is called `name`, with each adapter of its engine.

        They share all that it has, its admission too. The keys are the adapters' names.
        """
        info = self.engine.model
        return {
            adapter.name: replace(
                self,
                adapter=adapter.name,
                parent=name,
                fingerprint=system_fingerprint(info, adapter),
            )
            for adapter in info.adapters
        }


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
