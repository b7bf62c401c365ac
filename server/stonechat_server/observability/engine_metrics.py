"""The engine's statistics and the queue as Prometheus metrics."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from stonechat_server.observability.scraped import counter, gauge

if TYPE_CHECKING:
    from stonechat_models import EngineStats
    from stonechat_server.admission.controller import AdmissionControl


GAUGES: Sequence[tuple[str, str, "Callable[[EngineStats, AdmissionControl], float]"]] = (
    ("num_requests_running", "Sequences running in the engine", lambda stats, _: stats.num_running),
    (
        "num_requests_waiting",
        "Requests waiting for a slot or in the engine",
        lambda stats, admission: stats.num_waiting + admission.num_queued,
    ),
    (
        "kv_cache_usage_perc",
        "Share of KV blocks in use, 0 to 1",
        lambda stats, _: stats.num_used_blocks / max(1, stats.num_blocks),
    ),
    (
        "num_requests_admitted",
        "Requests that hold a slot",
        lambda _, admission: admission.num_running,
    ),
    (
        "num_requests_queued",
        "Requests waiting for a slot",
        lambda _, admission: admission.num_queued,
    ),
    (
        "queued_tokens",
        "Expected tokens of the requests waiting for a slot",
        lambda _, admission: admission.num_queued_tokens,
    ),
    (
        "last_step_seconds",
        "Duration of the last engine step",
        lambda stats, _: stats.last_step_seconds,
    ),
)
COUNTERS = (
    ("prompt_tokens", "Prompt tokens computed", "num_prompt_tokens"),
    ("generation_tokens", "Tokens generated", "num_generated_tokens"),
    (
        "prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache",
        "num_cache_queried_tokens",
    ),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache", "num_cache_hit_tokens"),
    (
        "spec_decode_num_draft_tokens",
        "Draft tokens proposed by speculative decoding",
        "num_drafted_tokens",
    ),
    (
        "spec_decode_num_accepted_tokens",
        "Draft tokens accepted by speculative decoding",
        "num_accepted_draft_tokens",
    ),
    (
        "spec_decode_num_draft_model_tokens",
        "Draft tokens proposed by the draft model",
        "num_model_drafted_tokens",
    ),
    (
        "spec_decode_num_accepted_draft_model_tokens",
        "Draft tokens of the draft model that were accepted",
        "num_accepted_model_draft_tokens",
    ),
    ("num_preemptions", "Sequences preempted", "num_preemptions"),
    ("images_encoded", "Images encoded by the vision tower", "num_encoded_images"),
    ("image_cache_hits", "Images of requests found encoded", "num_image_cache_hits"),
    ("image_encode_seconds", "Seconds of the vision tower", "image_encode_seconds"),
    ("audio_encoded", "Pieces of audio clips encoded by the audio tower", "num_encoded_audio"),
    ("audio_cache_hits", "Pieces of audio clips of requests found encoded", "num_audio_cache_hits"),
    ("audio_encode_seconds", "Seconds of the audio tower", "audio_encode_seconds"),
    ("engine_steps", "Engine steps", "num_steps"),
    ("engine_failed_steps", "Engine steps that failed", "num_failed_steps"),
)
"""The counters of an engine: name, meaning, and the field of its statistics."""

LoadedModel = tuple[str, "EngineStats", "AdmissionControl"]
"""A model's name, the statistics of its engine, and its queue."""


def engine_metrics(loaded: Callable[[], Sequence[LoadedModel]]) -> Iterator[Metric]:
    """Read the engines' statistics and the queues."""
    models = loaded()
    for name, text, value in GAUGES:
        yield gauge(name, text, [(model, value(stats, queue)) for model, stats, queue in models])
    model_name = models[0][0] if len(models) == 1 else ""
    text = "Tasks of the server's event loop"
    yield gauge("event_loop_tasks", text, [(model_name, _num_tasks())])
    for name, text, field in COUNTERS:
        yield counter(name, text, [(model, getattr(stats, field)) for model, stats, _ in models])


def _num_tasks() -> int:
    """The number of tasks; 0 outside the event loop."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
