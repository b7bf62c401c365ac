"""The preparation of requests is bounded in threads, requests and bytes."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest
from fastapi.testclient import TestClient

from stonechat_models import EngineError, GrammarError
from stonechat_server.admission.refusals import RefusedError
from stonechat_server.request import prepare_pool
from stonechat_server.request.prepare_pool import Preparations
from stonechat_server.structured.grammar_checks import GrammarPendingError
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
    monkeypatch.setattr("stonechat_server.api.shared.generate.INLINE_BODY_BYTES", 1_000)
    assert post(client, messages=large).status_code == 200
    monkeypatch.setattr(preparations, "_max_requests", 0)
    response = post(client, messages=large)
    assert response.status_code == 429
    assert error_of(response)["code"] == "rate_limit_exceeded"
    assert response.headers["Retry-After"] == "1"
    assert 'reason="preparation_full"' in client.get("/metrics").text
    assert post(client).status_code == 200


class CheckedWork:
    """Work that waits for the check of a grammar."""

    def __init__(self) -> None:
        self.check: Future[GrammarError | None] = Future()
        self.num_runs = self.num_drops = 0

    def __call__(self) -> str:
        self.num_runs += 1
        if not self.check.done():
            raise GrammarPendingError(self.check, self.drop)
        return "done"

    def drop(self) -> None:
        self.num_drops += 1


def test_no_thread_waits_for_the_check_of_a_grammar() -> None:
    async def scenario() -> None:
        preparations = Preparations(1, max_waiting=0, max_bytes=1000)
        checked = [CheckedWork() for _ in range(20)]
        tasks = []
        for work in checked:
            tasks.append(asyncio.create_task(preparations.run(work, 10)))
            await wait_until(lambda work=work: work.num_runs == 1 and not preparations.num_requests)
        assert await preparations.run(lambda: "other", 1) == "other"
        assert preparations.num_bytes == 200
        tasks[0].cancel()
        for work, task in zip(checked[1:], tasks[1:], strict=True):
            work.check.set_result(None)
            assert await task == "done"
        assert not checked[0].check.cancelled()
        await wait_until(lambda: preparations.num_bytes == 0)
        preparations.close()

    asyncio.run(scenario())


def test_the_number_of_waiting_checks_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_pool, "MAX_CHECKING", 1)

    async def scenario() -> None:
        preparations, work = Preparations(1, max_waiting=0, max_bytes=1000), CheckedWork()
        task = asyncio.create_task(preparations.run(work, 10))
        await wait_until(lambda: preparations.num_bytes == 10 and not preparations.num_requests)
        refused = CheckedWork()
        with pytest.raises(RefusedError) as caught:
            await preparations.run(refused, 10)
        assert caught.value.status == 429
        assert refused.num_drops == 1
        with pytest.raises(RefusedError):
            await preparations.run(work, 10)  # the check is still waited for
        assert work.num_drops == 0
        work.check.set_result(None)
        assert await task == "done"
        preparations.close()

    asyncio.run(scenario())


def test_a_check_is_dropped_once_the_last_request_has_left() -> None:
    async def scenario() -> None:
        preparations, work = Preparations(1, max_waiting=9, max_bytes=1000), CheckedWork()
        tasks = [asyncio.create_task(preparations.run(work, 10)) for _ in range(2)]
        await wait_until(lambda: len(preparations._waiting) == 2)
        for i, task in enumerate(tasks):
            assert work.num_drops == 0
            task.cancel()
            await asyncio.wait([task])
            assert work.num_drops == i
        preparations.close()

    asyncio.run(scenario())


def test_the_check_of_a_request_that_leaves_earlier_is_dropped() -> None:
    async def scenario() -> None:
        preparations, gate, work = Preparations(1, 9, 1000), Gate(), CheckedWork()
        task = asyncio.create_task(preparations.run(lambda: gate() + work(), 10))
        await wait_until(lambda: gate.num_running == 1)
        task.cancel()
        await asyncio.wait([task])
        gate.opened.set()
        await wait_until(lambda: work.num_drops == 1)
        preparations.close()

    asyncio.run(scenario())


def test_the_error_of_a_check_reaches_each_request() -> None:
    async def scenario() -> None:
        preparations, work = Preparations(1, max_waiting=9, max_bytes=1000), CheckedWork()
        tasks = [asyncio.create_task(preparations.run(work, 10)) for _ in range(2)]
        await wait_until(lambda: len(preparations._waiting) == 2)
        work.check.set_exception(EngineError("no process"))
        for task in tasks:
            with pytest.raises(EngineError, match="no process"):
                await task
        assert work.num_runs == 2
        preparations.close()

    asyncio.run(scenario())


def test_the_drain_ends_the_wait_for_checks() -> None:
    async def scenario() -> None:
        preparations, work = Preparations(1, max_waiting=0, max_bytes=1000), CheckedWork()
        task = asyncio.create_task(preparations.run(work, 10))
        await wait_until(lambda: preparations.num_bytes == 10 and not preparations.num_requests)
        preparations.drain()
        with pytest.raises(RefusedError) as caught:
            await task
        assert caught.value.status == 503
        with pytest.raises(RefusedError):
            await preparations.run(CheckedWork(), 10)
        preparations.close()

    asyncio.run(scenario())
