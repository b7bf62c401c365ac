import gzip
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.app import create_app
from stonechat_server.observability.tracing import Tracing
from stonechat_server.settings import Settings
from tests.server.bodies import URL, body
from tests.server.fake_engine import FakeEngine, text_script
from tests.server.observability.test_metrics import record

pytest.importorskip("opentelemetry.sdk")

NAMED = {"OTEL_SERVICE_NAME": "mine"}
TRACE = "0af7651916cd43dd8448eb211c80319c"


def spans_of(engine: FakeEngine, headers: dict[str, str], **fields: Any) -> dict[str, Any]:
    """Spans of one request, by the first word of their name."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(Settings(), engine, tracing=Tracing(provider))
    with TestClient(app, "http://localhost") as client:
        client.post(URL, json=body(**fields), headers=headers)
        return {span.name.split()[0]: span for span in exporter.get_finished_spans()}


@pytest.mark.parametrize(
    ("endpoint", "operation"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "text_completion"),
        ("/v1/responses", "chat"),
        ("/v1/messages", "chat"),
        ("/v1/embeddings", "embeddings"),
        ("/v1/rerank", "rerank"),
    ],
)
def test_the_span_names_the_endpoint(endpoint: str, operation: str) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    Tracing(provider).request_finished(record(endpoint))
    span = exporter.get_finished_spans()[-1]
    assert span.name == f"{operation} tiny-test"
    assert span.attributes is not None
    assert span.attributes["gen_ai.operation.name"] == operation
    assert span.attributes["http.route"] == endpoint


def test_a_trace_has_the_phases_and_no_text(engine: FakeEngine) -> None:
    engine.script = text_script("private", "words", pause=0.02)
    spans = spans_of(engine, {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
    assert set(spans) == {"chat", "queue", "prefill", "decode"}
    root = spans["chat"]
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == "b7ad6b7169203331"
    for name in ("queue", "prefill", "decode"):
        assert spans[name].parent.span_id == root.context.span_id
        assert root.start_time <= spans[name].start_time <= spans[name].end_time <= root.end_time
    assert root.attributes["gen_ai.usage.output_tokens"] == 2
    assert root.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert not any("private" in str(span.to_json()) for span in spans.values())


@pytest.mark.parametrize(("variables", "name"), [({}, "stonechat"), (NAMED, "mine")])
def test_export_by_otlp(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    for variable, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **variables}.items():
        monkeypatch.setenv(variable, value)
    app = create_app(Settings(), engine, tracing=Tracing.from_environment())
    with TestClient(app, "http://localhost") as client:
        client.post(URL, json=body())
    collector.shutdown()
    collector.server_close()
    ((path, data),) = received
    assert path == "/v1/traces"
    assert uncompressed(data).count(b"prefill") == 1
    assert name.encode() in uncompressed(data)


def uncompressed(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def test_a_broken_traceparent_starts_a_new_trace(engine: FakeEngine) -> None:
    assert spans_of(engine, {"traceparent": "nonsense"})["chat"].parent is None


def test_a_failed_request_is_an_error(engine: FakeEngine) -> None:
    engine.script = text_script("a", "b", pause=0.2)
    root = spans_of(engine, {"X-Request-Timeout": "0.05"})["chat"]
    assert root.status.status_code.name == "ERROR"
    assert root.attributes["http.response.status_code"] == 504
