"""Whatever observes a request names its endpoint."""

import logging
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from stonechat_server.admission.records import FinishedRequest
from stonechat_server.app import create_app
from stonechat_server.observability.ledger import Ledger, open_database, usage
from stonechat_server.settings import Settings
from tests.server.api.openapi.test_answers import REQUESTS
from tests.server.fake_engine import FakeEngine


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("path", REQUESTS)
def test_records_metrics_and_logs_name_the_endpoint(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, path: str, is_stream: bool
) -> None:
    records: list[FinishedRequest] = []
    app = create_app(Settings(), engine, sinks=[records.append])
    caplog.set_level(logging.INFO, logger="stonechat")
    with TestClient(app, "http://localhost") as client:
        request: dict[str, Any] = {k: v for k, v in REQUESTS[path].items() if k != "stream_options"}
        assert client.post(path, json=request | {"stream": is_stream}).status_code == 200
        metrics = client.get("/metrics").text
    (record,) = records
    assert (record.endpoint, record.stream, record.status) == (path, is_stream, 200)
    assert f'e2e_request_latency_seconds_count{{endpoint="{path}",' in metrics
    assert f'http_responses_total{{model_name="tiny-test",route="{path}",' in metrics
    assert f" path={path} status=200 " in caplog.text


def test_the_ledger_counts_by_endpoint(engine: FakeEngine, tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'usage.db'}"
    ledger = Ledger(url, tmp_path / "journal", flush_seconds=60)
    app = create_app(Settings(), engine, ledger=ledger)
    with TestClient(app, "http://localhost") as client:
        for path, request in REQUESTS.items():
            plain = {key: value for key, value in request.items() if key != "stream_options"}
            assert client.post(path, json=plain).status_code == 200
        unprefixed = REQUESTS["/v1/responses"]
        assert client.post("/responses", json=unprefixed).status_code == 200
    database: sa.Engine = open_database(url)
    counts = {row.group[0]: row.num_requests for row in usage(database, by=("endpoint",))}
    database.dispose()
    assert counts == dict.fromkeys(REQUESTS, 1) | {"/v1/responses": 2}


@pytest.mark.parametrize("path", [*REQUESTS, "/tokenize"])
def test_a_refusal_names_the_endpoint(engine: FakeEngine, path: str) -> None:
    app = create_app(Settings(), engine)
    with TestClient(app, "http://localhost") as client:
        app.state.server.lifecycle.begin_drain()
        body = REQUESTS.get(path, {"prompt": "x"})
        assert client.post(path, json=body).status_code == 503
        metrics = client.get("/metrics").text
    labels = f'endpoint="{path}",model_name="tiny-test",reason="draining"'
    assert f"requests_refused_total{{{labels}}} 1.0" in metrics
