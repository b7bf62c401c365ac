"""The engine's statistics and the queue as Prometheus metrics, read when they are scraped."""

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stonechat_server.observability.vllm_names import PREFIX

if TYPE_CHECKING:
    from stonechat_models import EngineStats
    from stonechat_server.admission.controller import AdmissionControl


class EngineCollector(Collector):
    """Reads the engine's statistics and the queue when the metrics are scraped."""

    def __init__(
        self, model_name: str, stats: "Callable[[], EngineStats]", admission: "AdmissionControl"
    ) -> None:
        self._model_name = model_name
        self._stats = stats
        self._admission = admission

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        stats, admission = self._stats(), self._admission
        usage = stats.num_used_blocks / stats.num_blocks if stats.num_blocks else 0.0
        num_waiting = stats.num_waiting + admission.num_queued
        yield self._gauge(
            "num_requests_running", "Sequences running in the engine", stats.num_running
        )
        yield self._gauge(
            "num_requests_waiting", "Requests waiting for a slot or in the engine", num_waiting
        )
        yield self._gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", usage)
        yield self._gauge(
            "num_requests_admitted", "Requests that hold a slot", admission.num_running
        )
        yield self._gauge(
            "num_requests_queued", "Requests waiting for a slot", admission.num_queued
        )
        yield self._gauge(
            "queued_tokens",
            "Expected tokens of the requests waiting for a slot",
            admission.num_queued_tokens,
        )
        yield self._gauge("event_loop_tasks", "Tasks of the server's event loop", _num_tasks())
        yield self._gauge(
            "last_step_seconds", "Duration of the last engine step", stats.last_step_seconds
        )
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens computed", stats.num_prompt_tokens),
            ("generation_tokens", "Tokens generated", stats.num_generated_tokens),
            (
                "prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache",
                stats.num_cache_queried_tokens,
            ),
            (
                "prefix_cache_hits",
                "Prompt tokens found in the prefix cache",
                stats.num_cache_hit_tokens,
            ),
            (
                "spec_decode_num_draft_tokens",
                "Draft tokens proposed by speculative decoding",
                stats.num_drafted_tokens,
            ),
            (
                "spec_decode_num_accepted_tokens",
                "Draft tokens accepted by speculative decoding",
                stats.num_accepted_draft_tokens,
            ),
            (
                "spec_decode_num_draft_model_tokens",
                "Draft tokens proposed by the draft model",
                stats.num_model_drafted_tokens,
            ),
            (
                "spec_decode_num_accepted_draft_model_tokens",
                "Draft tokens of the draft model that were accepted",
                stats.num_accepted_model_draft_tokens,
            ),
            ("num_preemptions", "Sequences preempted", stats.num_preemptions),
            ("engine_steps", "Engine steps", stats.num_steps),
            ("engine_failed_steps", "Engine steps that failed", stats.num_failed_steps),
        ):
            family = CounterMetricFamily(PREFIX + name, text, labels=["model_name"])
            family.add_metric([self._model_name], value)
            yield family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family


def _num_tasks() -> int:
    """The number of tasks; 0 outside the event loop."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
