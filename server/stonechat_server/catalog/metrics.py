"""The models of a server that has several, as Prometheus metrics."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, Metric

from stonechat_server.catalog.entry import Entry
from stonechat_server.observability.scraped import Values, counter, gauge
from stonechat_server.observability.vllm_names import PREFIX


def catalog_metrics(entries: Sequence[Entry]) -> Iterator[Metric]:
    """Read the states of the models."""

    def of_each(field: str) -> Values:
        return [(entry.name, getattr(entry, field)) for entry in entries]

    yield gauge("model_loaded", "1 for a model that is loaded", of_each("is_loaded"))
    yield gauge(
        "model_memory_bytes",
        "What a loaded model takes of the memory budget",
        [(entry.name, (entry.num_bytes or 0) * entry.is_loaded) for entry in entries],
    )
    text = "Requests that wait until their model is loaded"
    yield gauge("model_waiting_requests", text, of_each("num_waiting"))
    yield gauge("model_load_seconds", "How long the last load took", of_each("load_seconds"))
    yield counter("model_loads", "Loads", of_each("num_loads"))
    text = "Loads that failed, and crashes"
    yield counter("model_load_failures", text, of_each("num_all_failures"))
    unloads = CounterMetricFamily(
        PREFIX + "model_unloads", "Unloads and crashes", labels=["model_name", "reason"]
    )
    for entry in entries:
        for reason, count in entry.unload_reasons.items():
            unloads.add_metric([entry.name, reason], count)
    yield unloads
