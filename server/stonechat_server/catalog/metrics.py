"""The models of a server that has several as Prometheus metrics, read when they are scraped."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stonechat_server.catalog.entry import Entry
from stonechat_server.observability.vllm_names import PREFIX


class CatalogCollector(Collector):
    """Reads the states of the models when the metrics are scraped."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        gauges: tuple[tuple[str, str, Callable[[Entry], float]], ...] = (
            ("model_loaded", "1 for a model that is loaded", lambda entry: entry.is_loaded),
            (
                "model_memory_bytes",
                "What a loaded model takes of the memory budget",
                lambda entry: float(entry.num_bytes or 0) if entry.is_loaded else 0.0,
            ),
            (
                "model_waiting_requests",
                "Requests that wait until their model is loaded",
                lambda entry: entry.num_waiting,
            ),
            ("model_load_seconds", "How long the last load took", lambda entry: entry.load_seconds),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
            for entry in self._entries:
                gauge.add_metric([entry.name], value(entry))
            yield gauge
        yield from self._counters()

    def _counters(self) -> Iterator[Metric]:
        loads = CounterMetricFamily(PREFIX + "model_loads", "Loads", labels=["model_name"])
        failures = CounterMetricFamily(
            PREFIX + "model_load_failures", "Loads that failed, and crashes", labels=["model_name"]
        )
        unloads = CounterMetricFamily(
            PREFIX + "model_unloads", "Unloads and crashes", labels=["model_name", "reason"]
        )
        for entry in self._entries:
            loads.add_metric([entry.name], entry.num_loads)
            failures.add_metric([entry.name], entry.num_all_failures)
            for reason, count in entry.unload_reasons.items():
                unloads.add_metric([entry.name, reason], count)
        yield from (loads, failures, unloads)
