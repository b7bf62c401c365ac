"""Metrics that are read when they are scraped."""

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stonechat_server.observability.vllm_names import PREFIX

Values = Iterable[tuple[str, float]]
"""The values of models by their names."""


class Scraped(Collector):
    """The metrics that a function reads."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()


def gauge(name: str, text: str, values: Values) -> Metric:
    """A gauge with a value for each model."""
    return _filled(GaugeMetricFamily(PREFIX + name, text, labels=["model_name"]), values)


def counter(name: str, text: str, values: Values) -> Metric:
    """A counter with a value for each model."""
    return _filled(CounterMetricFamily(PREFIX + name, text, labels=["model_name"]), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    for model_name, value in values:
        family.add_metric([model_name], value)
    return family
