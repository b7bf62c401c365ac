"""The metrics a second time, under vLLM's names and with vLLM's labels."""

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample

PREFIX = "stonechat:"
VLLM_PREFIX = "vllm:"
OWN_LABEL = "endpoint"
"""A label that vLLM's metrics lack: its series are added up."""


class VllmAliases(Collector):
    """Serves the metrics of a registry under vLLM's prefix."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            alias = Metric(_alias(metric.name), metric.documentation, metric.type, metric.unit)
            alias.samples = _added_up(metric.samples)
            yield alias


def _added_up(samples: list[Sample]) -> list[Sample]:
    """Sum the samples that differ in `OWN_LABEL` only. Their earliest time of creation stays."""
    totals: dict[tuple[str, ...], Sample] = {}
    for sample in samples:
        labels = {name: value for name, value in sample.labels.items() if name != OWN_LABEL}
        place = (sample.name, *labels.values())
        value = sample.value
        if place in totals:
            old_value = totals[place].value
            is_time = sample.name.endswith("_created")
            value = min(old_value, value) if is_time else old_value + value
        totals[place] = sample._replace(name=_alias(sample.name), labels=labels, value=value)
    return list(totals.values())


def _alias(name: str) -> str:
    return VLLM_PREFIX + name.removeprefix(PREFIX)
