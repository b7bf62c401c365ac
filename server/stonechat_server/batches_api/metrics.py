"""The batches that run, as Prometheus metrics, read when they are scraped."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stonechat_server.batches_api.runner import BatchRunner
from stonechat_server.observability.vllm_names import PREFIX


class BatchCollector(Collector):
    """Counts the batches of one server by their model, which is empty while they are checked."""

    def __init__(self, runner: BatchRunner) -> None:
        self._runner = runner

    def collect(self) -> Iterator[Metric]:
        num_batches: Counter[str] = Counter()
        num_requests: Counter[str] = Counter()
        for batch in self._runner.batches:
            num_batches[batch.model or ""] += 1
            num_done = batch.num_completed + batch.num_failed
            num_requests[batch.model or ""] += batch.num_total - num_done
        for name, text, values in (
            ("batches_running", "Batches that have begun and have not ended", num_batches),
            ("batch_requests_pending", "Requests of these without a result", num_requests),
        ):
            family = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
            for model, value in values.items():
                family.add_metric([model], value)
            yield family
