"""The engine's statistics and the queue as Prometheus metrics, read when they are scraped."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stonechat_server.observability.vllm_names import PREFIX

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


class EngineCollector(Collector):
    """Reads the engines' statistics and the queues when the metrics are scraped."""

    def __init__(self, loaded: Callable[[], Sequence[LoadedModel]]) -> None:
        self._loaded = loaded

    def collect(self) -> Iterator[Metric]:
        loaded = self._loaded()
        for name, text, gauge in GAUGES:
            family = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
            for model_name, stats, admission in loaded:
                family.add_metric([model_name], gauge(stats, admission))
            yield family
        tasks = GaugeMetricFamily(
            PREFIX + "event_loop_tasks", "Tasks of the server's event loop", labels=["model_name"]
        )
        tasks.add_metric([loaded[0][0] if len(loaded) == 1 else ""], _num_tasks())
        yield tasks
        for name, text, field in COUNTERS:
            counter = CounterMetricFamily(PREFIX + name, text, labels=["model_name"])
            for model_name, stats, _ in loaded:
                counter.add_metric([model_name], getattr(stats, field))
            yield counter


def _num_tasks() -> int:
    """The number of tasks; 0 outside the event loop."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
