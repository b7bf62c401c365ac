"""OpenTelemetry traces: one server span per request, with queue, prefill and decode inside.

Needs the `otel` extra. OpenTelemetry's own variables, such as `OTEL_EXPORTER_OTLP_ENDPOINT`,
configure the exporter. A client's `traceparent` (W3C Trace Context) becomes the parent. Attribute
names follow OpenTelemetry's conventions for generative AI. No span contains prompts or answers.
"""

from typing import TYPE_CHECKING

from stonechat_server.admission.records import FinishedRequest
from stonechat_server.options import UserError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

NANOSECONDS = 1_000_000_000
OPERATIONS = {
    "/v1/completions": "text_completion",
    **dict.fromkeys(("/v1/embeddings", "/api/embed", "/api/embeddings"), "embeddings"),
    "/v1/rerank": "rerank",
    "/v1/score": "rerank",
}
"""OpenTelemetry's name of what an endpoint does, where it is not `chat`. `rerank` is our own."""


class Tracing:
    """Exports a trace for each finished request, with its measured times."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer: Tracer = provider.get_tracer("stonechat")

    @classmethod
    def from_environment(cls) -> "Tracing":
        """Export by OTLP over HTTP. Raises `UserError` without the `otel` extra."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            message = "traces need OpenTelemetry: pip install 'stonechat[otel]'"
            raise UserError(message) from error
        default_resource = Resource.create().merge(Resource({"service.name": "stonechat"}))
        resource = default_resource.merge(OTELResourceDetector().detect())  # variables win
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def request_finished(self, record: FinishedRequest) -> None:
        """Create the spans of a request that has ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        offset = record.created - record.started
        carrier = {"traceparent": record.traceparent} if record.traceparent else {}
        span = self._tracer.start_span(
            f"{_operation(record)} {record.model}",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.SERVER,
            start_time=_nanoseconds(record.started + offset),
        )
        span.set_attributes(_attributes(record))
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR, record.error_code))
        context = set_span_in_context(span)
        for name, start, end in _phases(record):
            child = self._tracer.start_span(
                name, context=context, start_time=_nanoseconds(start + offset)
            )
            child.end(_nanoseconds(end + offset))
        _end(span, record.finished + offset)

    def close(self) -> None:
        """Export the pending spans and stop."""
        self._provider.shutdown()


def _end(span: "Span", seconds: float) -> None:
    span.end(_nanoseconds(seconds))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * NANOSECONDS)


def _phases(record: FinishedRequest) -> list[tuple[str, float, float]]:
    """Name, start and end of each phase that the request reached, in `time.monotonic()` seconds."""
    timings = record.timings
    names = ("queue", "prefill", "decode")
    marks = [record.started]
    for moment in (timings.scheduled, timings.first_token) if timings else ():
        if moment is None:
            break
        marks.append(moment)
    marks.append(record.finished)
    return [
        (name, start, max(start, end))
        for name, start, end in zip(names, marks, marks[1:], strict=False)
    ]


def _operation(record: FinishedRequest) -> str:
    return OPERATIONS.get(record.endpoint, "chat")


def _attributes(record: FinishedRequest) -> dict[str, str | int | bool | tuple[str, ...]]:
    return {
        "gen_ai.operation.name": _operation(record),
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.output_tokens": record.num_completion_tokens,
        "gen_ai.response.finish_reasons": tuple(record.listed_reasons),
        "gen_ai.request.choice.count": record.num_choices,
        "http.request.method": "POST",
        "http.route": record.endpoint,
        "http.response.status_code": record.status,
        "stonechat.request_id": record.request_id,
        "stonechat.key": record.key,
        "stonechat.stream": record.stream,
        "stonechat.cached_tokens": record.num_cached_tokens,
    }
