"""The batches that run, as Prometheus metrics."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import Metric

from stonechat_server.batches_api.runner import BatchRunner
from stonechat_server.observability.scraped import gauge


def batch_metrics(runner: BatchRunner) -> Iterator[Metric]:
    """Count the batches of one server by their model, which is empty while they are checked."""
    num_batches: Counter[str] = Counter()
    num_requests: Counter[str] = Counter()
    for batch in runner.batches:
        num_batches[batch.model or ""] += 1
        num_done = batch.num_completed + batch.num_failed
        num_requests[batch.model or ""] += batch.num_total - num_done
    text = "Batches that have begun and have not ended"
    yield gauge("batches_running", text, num_batches.items())
    yield gauge(
        "batch_requests_pending", "Requests of these without a result", num_requests.items()
    )
