"""The preparation of requests is bounded in threads, requests and bytes."""

import asyncio
import threading
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from stonechat_server.admission.refusals import RefusedError
from stonechat_server.request.prepare_pool import Preparations
from tests.server.bodies import body, error_of, post
from tests.server.fake_engine import FakeEngine


class Gate:
    """Work that waits until `opened` is set, and counts how many calls run at once."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.num_running = self.max_running = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.num_running += 1
            self.max_running = max(self.max_running, self.num_running)
        self.opened.wait(60)
        with self._lock:
            self.num_running -= 1
        return "done"


async def wait_until(is_done: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_done():
            await asyncio.sleep(0.001)


def test_threads_requests_and_bytes_are_bounded() -> None:
    async def scenario() -> None:
        preparations, gate = Preparations(2, max_waiting=3, max_bytes=100), Gate()
        tasks = [asyncio.create_task(preparations.run(gate, 10)) for _ in range(5)]
        await wait_until(lambda: gate.num_running == 2)
        with pytest.raises(RefusedError) as caught:
            await preparations.run(gate, 1)
        assert (caught.value.status, caught.value.reason) == (429, "preparation_full")
        assert int(caught.value.headers["Retry-After"]) >= 1
        tasks[4].cancel()
        await wait_until(lambda: preparations.num_requests == 4)
        with pytest.raises(RefusedError):
            preparations.check(61)
        preparations.check(60)
        gate.opened.set()
        assert await asyncio.gather(*tasks[:4]) == ["done"] * 4
        await wait_until(lambda: preparations.num_requests == preparations.num_bytes == 0)
        assert gate.max_running == 2
        assert await preparations.run(gate, 1000) == "done"
        preparations.close()

    asyncio.run(scenario())


def test_work_that_goes_on_after_its_request_is_still_counted() -> None:
    async def scenario() -> None:
        preparations, gate = Preparations(1, max_waiting=1, max_bytes=100), Gate()
        task = asyncio.create_task(preparations.run(gate, 10))
        await wait_until(lambda: gate.num_running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert preparations.num_requests == 1
        gate.opened.set()
        await wait_until(lambda: preparations.num_requests == 0)
        preparations.close()

    asyncio.run(scenario())


def test_a_large_request_is_refused_while_small_ones_are_served(
    client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparations = client.app.state.server.preparations  # type: ignore[attr-defined]
    large = body(messages=[{"role": "user", "content": "x" * 2_000}])["messages"]
    monkeypatch.setattr("stonechat_server.api.chat.INLINE_BODY_BYTES", 1_000)
    assert post(client, messages=large).status_code == 200
    monkeypatch.setattr(preparations, "_max_requests", 0)
    response = post(client, messages=large)
    assert response.status_code == 429
    assert error_of(response)["code"] == "rate_limit_exceeded"
    assert response.headers["Retry-After"] == "1"
    assert 'reason="preparation_full"' in client.get("/metrics").text
    assert post(client).status_code == 200
