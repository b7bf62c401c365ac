"""What serves the requests to one model that is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stonechat_models import ModelInfo, ModelLoadError
from stonechat_server.admission.controller import AdmissionControl, Tenants
from stonechat_server.admission.limits import AdmissionLimits
from stonechat_server.catalog.fingerprint import system_fingerprint
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.prompt.chat_template import Templates
from stonechat_server.prompt.known_templates import KNOWN
from stonechat_server.settings import Settings
from stonechat_server.structured.structure import Structure

CACHE_OVERCOMMIT = 4
"""Admitted requests may expect this many times the tokens of the KV cache. Few use all of their
limit, and the engine preempts if they do."""
EMBEDDING_BATCHES = 8
"""Admitted requests to a model without a KV cache fill at most this many batches."""
EMBEDDING_SHARE = 0.25
"""A list of texts holds at most this part of them, so that others do not wait for all of it."""


@dataclass(slots=True, kw_only=True)
class ServedModel:
    """An engine, and what the server makes of its model's files."""

    metrics_name: str
    """What the metrics call it."""
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

    @classmethod
    def build(
        cls, settings: Settings, engine: EngineLike, tenants: Tenants, metrics_name: str = ""
    ) -> "ServedModel":
        """Raises `APIError` for a chat template that does not compile."""
        return cls(
            metrics_name=metrics_name or engine.model.name,
            settings=settings,
            engine=engine,
            templates=_templates(settings, engine),
            structure=_structure(settings, engine),
            admission=AdmissionControl(_limits(settings, engine.model), tenants=tenants),
            fingerprint=system_fingerprint(engine.model),
        )

    def by_name(self, names: Sequence[str]) -> "dict[str, ServedModel]":
        """What serves each of the model's names, and each adapter of its engine.

        The adapters share all that the model has, its admission too. Their requests are measured
        under their own names. Raises `ModelLoadError` if one has a name of the model.
        """
        info, name = self.engine.model, names[0]
        for adapter in info.adapters:
            if adapter.name in names:
                raise ModelLoadError(
                    f"{adapter.name} names the model and an adapter: give --lora another name"
                )
        return dict.fromkeys(names, self) | {
            adapter.name: replace(
                self,
                metrics_name=adapter.name,
                adapter=adapter.name,
                parent=name,
                fingerprint=system_fingerprint(info, adapter),
            )
            for adapter in info.adapters
        }

    def wake(self, engine: EngineLike) -> None:
        """Take a new engine of the same model. What was made of the old files' tokenizer is kept
        if the new engine has the same tokenizer. Raises what `build` raises."""
        if engine.tokenizer is not self.engine.tokenizer:
            self.templates = _templates(self.settings, engine)
            self.structure.close()
            self.structure = _structure(self.settings, engine)
        self.engine = engine
        self.admission.limits = _limits(self.settings, engine.model)
        self.fingerprint = system_fingerprint(engine.model)


def _templates(settings: Settings, engine: EngineLike) -> Templates:
    return Templates(
        engine.tokenizer,
        settings.chat_template,
        settings.allow_request_templates,
        special_tokens_as_text=settings.special_tokens_as_text,
        known=KNOWN.get(engine.model.architecture),
    )


def _structure(settings: Settings, engine: EngineLike) -> Structure:
    return Structure(
        engine.tokenizer,
        settings.tool_format,
        schema_in_prompt=settings.schema_in_prompt,
        has_reasoning=settings.reasoning,
        bare_calls=settings.bare_calls,
        stop_repeated_calls=settings.stop_repeated_calls,
    )


def _limits(settings: Settings, model: ModelInfo) -> AdmissionLimits:
    """Bounds from the settings, or else from the size of the engine.

    Slightly more requests are admitted than the engine runs at once, so that it never waits. A
    model without a KV cache gets the texts of several batches, to choose those of similar length.
    """
    has_cache = model.num_blocks > 0
    if has_cache:
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
        max_share=0.5 if has_cache else EMBEDDING_SHARE,
    )
