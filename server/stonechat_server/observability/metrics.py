"""Prometheus metrics: histograms and counters of requests, and the engine's own counters.

Names start with `stonechat:`. Where vLLM has the same metric, the rest of the name and the meaning
are vLLM's. With `vllm_names` they are served a second time under `vllm:`. Metrics of requests have
the label `endpoint`: the path of a route, never a client's path.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from stonechat_server.admission.records import FinishedRequest
from stonechat_server.observability.engine_metrics import LoadedModel, engine_metrics
from stonechat_server.observability.media_metrics import MediaMetrics
from stonechat_server.observability.scraped import Scraped
from stonechat_server.observability.vllm_names import PREFIX, VllmAliases

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
)
TOKEN_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2),
    *(0.3, 0.5, 0.75, 1.0, 2.5, 5.0),
)
LENGTH_BUCKETS = tuple(float(k * 10**e) for e in range(6) for k in (1, 2, 5))
CHOICE_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


HISTOGRAMS = (
    ("time_to_first_token_seconds", "From arrival to the first token", LATENCY_BUCKETS),
    ("request_time_per_output_token_seconds", "Decode time per output token", TOKEN_BUCKETS),
    ("e2e_request_latency_seconds", "From arrival to the end of the answer", LATENCY_BUCKETS),
    ("request_queue_time_seconds", "From arrival to the first scheduled step", LATENCY_BUCKETS),
    (
        *("request_prefill_time_seconds", "From the first scheduled step to the first token"),
        LATENCY_BUCKETS,
    ),
    ("request_decode_time_seconds", "From the first token to the last", LATENCY_BUCKETS),
    ("request_prompt_tokens", "Prompt tokens per request", LENGTH_BUCKETS),
    (
        *("request_generation_tokens", "Generated tokens per request, over all choices"),
        LENGTH_BUCKETS,
    ),
    ("request_params_n", "Choices per request", CHOICE_BUCKETS),
)
"""The histograms of requests: their names, what they measure, and their buckets."""


class Metrics:
    """The metrics of one server, in registries of their own."""

    def __init__(
        self,
        model_name: str,
        loaded: Callable[[], Sequence["LoadedModel"]],
        *,
        vllm_names: bool = False,
    ) -> None:
        """`model_name` labels what belongs to no model; empty if there are several models.

        `loaded` returns the models that have an engine.
        """
        self._model_name = model_name
        self._registry = CollectorRegistry()
        labels = ["model_name", "endpoint"]
        self._histograms = {
            name: Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self._registry)
            for name, text, buckets in HISTOGRAMS
        }
        self._by_endpoint: dict[tuple[str, str], dict[str, Histogram]] = {}
        self._inter_token = _TokenHistogram(
            PREFIX + "inter_token_latency_seconds",
            "Time between two outputs that add tokens to a choice",
            TOKEN_BUCKETS,
        )
        self._registry.register(self._inter_token)
        self.gaps = self._inter_token.series
        """By the name of a model: what observes the time between two outputs."""
        self._success = self._counter(
            "request_success",
            "Choices of finished requests by finish reason",
            "finished_reason",
            "endpoint",
        )
        self._refused = self._counter(
            "requests_refused", "Requests refused by admission control", "reason", "endpoint"
        )
        self._lost = self._counter(
            "records_lost", "Requests that could not be recorded in the ledger or a trace"
        ).labels(model_name)
        self.media = MediaMetrics(self._registry, LATENCY_BUCKETS)
        """Counts the images and audio of requests."""
        self._responses = self._counter(
            "http_responses", "HTTP answers by route and status", "route", "status"
        )
        self.add(partial(engine_metrics, loaded))
        self._aliases = CollectorRegistry()
        if vllm_names:
            self._aliases.register(VllmAliases(self._registry))
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    def add(self, read: Callable[[], Iterable[Metric]]) -> None:
        """Serve what `read` returns at each scrape, too."""
        self._registry.register(Scraped(read))

    def render(self) -> bytes:
        """The text that `/metrics` serves, of type `CONTENT_TYPE`."""
        registries = (self._registry, self._aliases, self._process)
        return b"".join(generate_latest(registry) for registry in registries)

    def refused(self, reason: str, endpoint: str, model: str = "") -> None:
        """Count a request that admission control has refused. `model`: if it is known."""
        self._refused.labels(model or self._model_name, reason, endpoint).inc()

    def record_lost(self) -> None:
        """Count a request that a sink could not record; the log has the cause."""
        self._lost.inc()

    def responded(self, route: str, status: int) -> None:
        """Count an HTTP answer; `route` is a route's pattern, never a client's path."""
        self._responses.labels(self._model_name, route, str(status)).inc()

    def request_finished(self, record: FinishedRequest) -> None:
        """Observe an admitted request that has ended."""
        model = record.metrics_model or self._model_name
        reasons = record.finish_reasons
        for reason in set(reasons):
            self._success.labels(model, reason, record.endpoint).inc(reasons.count(reason))
        histograms = self._histograms_of(model, record.endpoint)
        for name, value in _observations(record):
            histograms[name].observe(value)

    def _histograms_of(self, model: str, endpoint: str) -> dict[str, Histogram]:
        """The histograms of one model and endpoint, made at its first request."""
        if (model, endpoint) not in self._by_endpoint:
            self._by_endpoint[model, endpoint] = {
                name: histogram.labels(model, endpoint)
                for name, histogram in self._histograms.items()
            }
        return self._by_endpoint[model, endpoint]

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, ["model_name", *labels], registry=self._registry)


def _observations(record: FinishedRequest) -> Iterator[tuple[str, float]]:
    """Yield what the histograms observe of a request, by their names."""
    yield "e2e_request_latency_seconds", record.finished - record.started
    yield "request_prompt_tokens", record.num_prompt_tokens
    yield "request_generation_tokens", record.num_completion_tokens
    yield "request_params_n", record.num_choices
    timings = record.timings
    if timings is None or timings.scheduled is None:
        return
    yield "request_queue_time_seconds", max(0.0, timings.scheduled - record.started)
    if timings.first_token is None:
        return
    yield "time_to_first_token_seconds", timings.first_token - record.started
    yield "request_prefill_time_seconds", max(0.0, timings.first_token - timings.scheduled)
    if timings.finished is not None:
        decode = timings.finished - timings.first_token
        yield "request_decode_time_seconds", decode
        num_steps = record.num_completion_tokens / max(1, len(record.finish_reasons)) - 1
        if num_steps > 0:
            yield "request_time_per_output_token_seconds", decode / num_steps


class _TokenHistogram(Collector):
    """A histogram observed for every token, by the event loop alone, and so without a lock."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self.series: defaultdict[str, _TokenSeries] = defaultdict(partial(_TokenSeries, bounds))

    def collect(self) -> Iterator[Metric]:
        names = [*map(str, self._bounds), "+Inf"]
        family = HistogramMetricFamily(self._name, self._documentation, labels=["model_name"])
        for model_name, series in self.series.items():
            buckets = list(zip(names, accumulate(series.counts), strict=True))
            family.add_metric([model_name], buckets, series.sum)
        yield family


class _TokenSeries:
    """The observations of one model."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._bounds = bounds

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value
