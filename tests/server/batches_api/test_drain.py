"""SIGTERM in a batch: what runs ends, what waits runs after the next start."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from stonechat_models import FinishReason, GenerateRequest, RequestOutput
from stonechat_server.settings import Settings
from stonechat_server.storage.storage import open_storage
from tests.server.batches_api.batch_files import jsonl, line, said_by
from tests.server.bodies import URL
from tests.server.fake_engine import FakeEngine, delta, output
from tests.server.live import live_server, wait_until


def test_running_requests_end_and_waiting_ones_go_on_later(tmp_path: Path) -> None:
    release = threading.Event()

    def held(request: GenerateRequest) -> Iterator[RequestOutput | float]:
        while not release.is_set():
            yield 0.01
        yield output(request, delta("y", finish=FinishReason.STOP), finished=True)

    settings: dict[str, Any] = {
        "files_dir": tmp_path,
        "ledger": "off",
        "batch_concurrency": 2,
        "shutdown_grace": 600,
    }
    first, second = FakeEngine(held), FakeEngine()  # type: ignore[arg-type]
    with live_server(first, storage=open_storage(Settings(**settings)), **settings) as live:
        content = jsonl(line(f"r{i}") for i in range(5))
        file = httpx.post(
            live.url + "/v1/files", data={"purpose": "batch"}, files={"file": ("in", content)}
        ).json()
        body = {"input_file_id": file["id"], "endpoint": URL, "completion_window": "24h"}
        batch = httpx.post(live.url + "/v1/batches", json=body).json()
        wait_until(lambda: len(first.requests) == 2)
        live.signal()
        release.set()
        live.thread.join(60)
        assert not live.thread.is_alive()
    assert len(first.requests) == 2
    with live_server(second, storage=open_storage(Settings(**settings)), **settings) as live:
        path = f"{live.url}/v1/batches/{batch['id']}"
        wait_until(lambda: httpx.get(path).json()["status"] == "completed")
        counts = httpx.get(path).json()["request_counts"]
    assert counts == {"total": 5, "completed": 5, "failed": 0}
    ran = [said_by(request) for request in (*first.requests, *second.requests)]
    assert sorted(ran) == [f"r{i}" for i in range(5)]
