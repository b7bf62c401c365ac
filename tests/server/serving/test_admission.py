import json
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import msgspec
from fastapi.testclient import TestClient

from stonechat_server.access.keys_file import add_key, revoke_key
from stonechat_server.admission.controller import AdmissionControl
from stonechat_server.admission.limits import AdmissionLimits
from stonechat_server.app import create_app
from stonechat_server.observability.ledger import Ledger, open_database, usage
from stonechat_server.observability.ledger.journal import read_file
from stonechat_server.settings import Settings
from tests.server.bodies import URL, body, error_of
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, delta, held, output, text_script
from tests.server.live import Live, live_server, wait_until
from tests.virtual_time import run

ONE_AT_A_TIME = AdmissionLimits(
    max_running_sequences=1,
    max_running_tokens=10**9,
    max_queued_requests=2,
    max_queued_tokens=10**9,
)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_keys_have_limits_and_models(new_client: ClientFactory, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    alice = add_key(path, "alice", requests_per_minute=2, tokens_per_minute=5000)
    bob = add_key(path, "bob", models=("other",))
    client = new_client(keys_file=path, served_model_name=["tiny-test", "other"])
    limiter = client.app.state.server.rate_limiter  # type: ignore[attr-defined]
    limiter._clock = lambda: 0.0  # nothing is filled up again
    first = client.post(URL, json=body(max_tokens=100), headers=bearer(alice))
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-limit-tokens"] == "5000"
    used = 5000 - int(first.headers["x-ratelimit-remaining-tokens"])
    assert used == first.json()["usage"]["total_tokens"]  # the tokens used, not the 100 requested
    assert client.post(URL, json=body(), headers=bearer(alice)).status_code == 200
    refused = client.post(URL, json=body(), headers=bearer(alice))
    assert refused.status_code == 429
    assert error_of(refused)["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"

    assert client.post(URL, json=body(), headers=bearer(bob)).status_code == 404
    assert client.post(URL, json=body(model="other"), headers=bearer(bob)).status_code == 200
    models = client.get("/v1/models", headers=bearer(bob)).json()["data"]
    assert [model["id"] for model in models] == ["other"]
    assert client.get("/v1/models/tiny-test", headers=bearer(bob)).status_code == 404
    assert client.post(URL, json=body(), headers=bearer("sk-unknown")).status_code == 401
    text = client.get("/metrics").text
    labels = f'endpoint="{URL}",model_name="tiny-test",reason="requests_per_minute"'
    assert f"requests_refused_total{{{labels}}} 1.0" in text


def test_requests_that_generate_nothing_count(new_client: ClientFactory, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    headers = bearer(add_key(path, "alice", requests_per_minute=2))
    client = new_client(keys_file=path)
    for left in ("1", "0"):
        answer = client.post("/tokenize", json={"prompt": "a"}, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-remaining-requests"] == left
    assert client.post("/tokenize", json={"prompt": "a"}, headers=headers).status_code == 429
    assert client.post(URL, json=body(), headers=headers).status_code == 429


def test_a_revoked_key_is_refused(new_client: ClientFactory, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    secret = add_key(path, "alice")
    client = new_client(keys_file=path)
    assert client.post(URL, json=body(), headers=bearer(secret)).status_code == 200
    revoke_key(path, "alice")
    wait_until(lambda: client.get("/v1/models", headers=bearer(secret)).status_code == 401)


def test_deadlines(engine: FakeEngine) -> None:
    engine.script = lambda request: [output(request, delta("a")), 600.0]

    async def ask() -> None:
        app = create_app(Settings(request_timeout=1.0), engine)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            plain = await client.post(URL, json=body())
            assert plain.status_code == 504
            assert error_of(plain)["code"] == "timeout"
            streamed = (await client.post(URL, json=body(stream=True))).text.split("\n\n")
            assert json.loads(streamed[-2].removeprefix("data: "))["error"]["code"] == "timeout"
            for seconds in ("0.05", "100"):
                headers = {"X-Request-Timeout": seconds}
                answer = await client.post(URL, json=body(), headers=headers)
                assert answer.status_code == 504
            for header in ("0", "-1", "soon", "nan", "inf"):
                headers = {"X-Request-Timeout": header}
                response = await client.post(URL, json=body(), headers=headers)
                assert response.status_code == 400
                assert error_of(response)["param"] == "X-Request-Timeout"

    run(ask())
    assert engine.num_running == 0
    assert len(engine.aborted) == len(engine.requests)


def one_at_a_time(live: Live) -> AdmissionControl:
    admission: AdmissionControl = live.services.sole.admission
    admission.limits = ONE_AT_A_TIME
    admission._queue.max_requests = 2
    return admission


def test_a_full_queue() -> None:
    is_over = threading.Event()
    with live_server(FakeEngine(held(is_over.is_set))) as live:
        admission = one_at_a_time(live)
        answers: list[int] = []

        def ask() -> None:
            answers.append(httpx.post(live.url + URL, json=body(), timeout=60).status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: admission.num_queued == 2)
        refused = httpx.post(live.url + URL, json=body(), timeout=60)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        metrics = httpx.get(live.url + "/metrics", timeout=60).text
        assert 'num_requests_waiting{model_name="tiny-test"} 2.0' in metrics
        is_over.set()
        for thread in threads:
            thread.join(60)
        assert answers == [200, 200, 200]
        assert (admission.num_running, admission.num_queued_tokens) == (0, 0)


def test_the_deadline_of_the_queue() -> None:
    is_over = threading.Event()
    with live_server(FakeEngine(held(is_over.is_set)), queue_timeout=0.1) as live:
        admission = one_at_a_time(live)
        with httpx.stream("POST", live.url + URL, json=body(stream=True), timeout=60) as first:
            assert httpx.post(live.url + URL, json=body(), timeout=60).status_code == 504
            assert admission.num_running == 1
            is_over.set()
            assert first.read().endswith(b"data: [DONE]\n\n")


def test_a_client_that_disconnects_in_the_queue_frees_its_place() -> None:
    is_over = threading.Event()
    with live_server(FakeEngine(held(is_over.is_set))) as live:
        admission = one_at_a_time(live)
        data = json.dumps(body()).encode()
        head = f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
        with httpx.stream("POST", live.url + URL, json=body(stream=True), timeout=60) as first:
            with socket.create_connection(("127.0.0.1", live.port)) as client:
                client.sendall(head.encode() + data)
                wait_until(lambda: admission.num_queued == 1)
            wait_until(lambda: admission.num_queued == 0)
            is_over.set()
            first.read()
        wait_until(lambda: admission.num_running == 0)


def test_the_ledger_records_what_clients_saw(engine: FakeEngine, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'usage.db'}"
    engine.script = text_script("one", "two", cached=4)
    ledger = Ledger(url, tmp_path / "journal", flush_seconds=60)
    settings = Settings(api_key=["k"], ledger_text=True)
    with TestClient(create_app(settings, engine, ledger=ledger), "http://localhost") as client:
        plain = client.post(URL, json=body(user="u", n=2), headers=bearer("k")).json()
        client.post(URL, json=body(safety_identifier="s", stream=True), headers=bearer("k"))
        client.post(URL, json=body(temperature=9), headers=bearer("k"))
        client.post(URL, json=body())
        (journal,) = (tmp_path / "journal").iterdir()
        first, second = read_file(journal)[0]
    expected = plain["usage"]
    assert first.prompt_tokens == second.prompt_tokens == expected["prompt_tokens"]
    assert (first.completion_tokens, second.completion_tokens) == (4, 2)
    assert first.completion_tokens == expected["completion_tokens"]
    assert (first.finish_reasons, second.finish_reasons) == ("stop,stop", "stop")
    assert (first.user, second.safety_identifier) == ("u", "s")
    assert (first.stream, second.stream, first.cached_tokens) == (False, True, 4)
    assert first.key.startswith("key-")
    assert first.completion == '["onetwo", "onetwo"]'
    assert first.prompt is not None
    assert msgspec.json.decode(first.prompt) == {"messages": body()["messages"]}
    assert first.first_token_seconds is not None
    database = open_database(url)
    rows = usage(database, by=("user",))
    assert [(row.group, row.num_requests) for row in rows] == [(("s",), 1), (("u",), 1)]
    database.dispose()


def test_the_ledger_has_no_text_by_default(engine: FakeEngine, tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'usage.db'}", tmp_path / "journal", flush_seconds=60)
    with TestClient(create_app(Settings(), engine, ledger=ledger), "http://localhost") as client:
        secret: list[dict[str, Any]] = [{"role": "user", "content": "a most private matter"}]
        client.post(URL, json=body(messages=secret))
        (journal,) = (tmp_path / "journal").iterdir()
        text = journal.read_text()
    assert "private matter" not in text
    assert "wörld" not in text


def test_a_request_cannot_raise_its_own_priority(
    engine: FakeEngine, new_client: ClientFactory, tmp_path: Path
) -> None:
    path = tmp_path / "keys.toml"
    secret = add_key(path, "alice", priority=3)
    client = new_client(keys_file=path, private_prefix_cache=True)
    for priority in (None, -100, 5):
        client.post(URL, json=body(priority=priority, cache_salt="s"), headers=bearer(secret))
    assert [request.priority for request in engine.requests] == [3, 3, 8]
    assert {request.cache_salt for request in engine.requests} == {"alice\ns"}


def test_a_failing_ledger_fails_no_answer(engine: FakeEngine, tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'usage.db'}", tmp_path / "journal", flush_seconds=60)

    def full_disk(entry: object) -> None:
        raise OSError("No space left on device")

    with TestClient(create_app(Settings(), engine, ledger=ledger), "http://localhost") as client:
        ledger.record = full_disk  # type: ignore[method-assign]
        assert client.post(URL, json=body()).status_code == 200
        streamed = client.post(URL, json=body(stream=True)).text
        assert streamed.endswith("data: [DONE]\n\n")
        text = client.get("/metrics").text
    assert 'stonechat:records_lost_total{model_name="tiny-test"} 2.0' in text


def test_no_value_of_user_can_break_the_ledger(engine: FakeEngine, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'usage.db'}"
    ledger = Ledger(url, tmp_path / "journal", flush_seconds=60)
    with TestClient(create_app(Settings(), engine, ledger=ledger), "http://localhost") as client:
        for user in ("a\0b", "x" * 100_000, "line\nbreak\u2028", "\ufffe"):
            assert client.post(URL, json=body(user=user)).status_code == 200
        raw = json.dumps(body(user="S")).replace('"S"', r'"\ud800"')
        assert client.post(URL, content=raw).status_code in (200, 400)
        lost = client.get("/metrics").text
    assert 'stonechat:records_lost_total{model_name="tiny-test"} 0.0' in lost
    database = open_database(url)
    users = {row.group[0] for row in usage(database, by=("user",))}
    assert {"a\ufffdb", "x" * 256, "line\nbreak\u2028", "\ufffe"} <= users
    database.dispose()
