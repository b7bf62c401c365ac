import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx

from stonechat_models import FinishReason, GenerateRequest, RequestOutput
from stonechat_server.observability.ledger import Ledger, open_database, usage
from stonechat_server.serving.connections import SilentConnections
from tests.server.bodies import URL, body
from tests.server.fake_engine import FakeEngine, delta, endless, output
from tests.server.live import Live, live_server, wait_until

SLOW = endless()


def held_script(release: threading.Event) -> Any:
    """Return a script whose answer ends after `release` is set."""

    def play(request: GenerateRequest) -> Iterator[RequestOutput | float]:
        for _ in range(3):
            yield output(request, delta("x"))
        while not release.is_set():
            yield 0.01
        yield output(request, delta("y", finish=FinishReason.STOP), finished=True)

    return play


class Reader:
    """A client that streams in a thread of its own."""

    def __init__(self, live: Live, **fields: Any) -> None:
        self.lines: list[str] = []
        self._live, self._fields = live, fields
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        request = {"json": body(stream=True, **self._fields), "timeout": 60}
        with (
            suppress(httpx.RemoteProtocolError),  # cut off by a second signal
            httpx.stream("POST", self._live.url + URL, **request) as response,  # type: ignore[arg-type]
        ):
            self.lines.extend(line for line in response.iter_lines() if line)

    def last(self) -> Any:
        self.thread.join(60)
        return json.loads(self.lines[-1].removeprefix("data: "))


def test_a_drain_lets_streams_finish_and_refuses_new_requests() -> None:
    release = threading.Event()
    with live_server(FakeEngine(held_script(release)), shutdown_grace=600) as live:
        reader = Reader(live)
        wait_until(lambda: len(reader.lines) > 2)
        live.signal()
        assert httpx.get(live.url + "/ready").status_code == 503
        assert httpx.get(live.url + "/health").status_code == 200
        refused = httpx.post(live.url + URL, json=body())
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "service_unavailable"
        release.set()
        reader.thread.join(60)
        assert reader.lines[-1] == "data: [DONE]"
        live.thread.join(60)
        assert not live.thread.is_alive()


def test_after_the_grace_period_a_stream_gets_an_error_event(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'usage.db'}"
    ledger = Ledger(url, tmp_path / "journal", flush_seconds=60)
    engine = FakeEngine(SLOW)
    with live_server(engine, ledger, shutdown_grace=1) as live:
        reader = Reader(live)
        wait_until(lambda: len(reader.lines) > 2)
        live.signal()
        assert reader.last()["error"]["code"] == "service_unavailable"
        live.thread.join(60)
        assert not live.thread.is_alive()
    assert engine.num_running == 0
    database = open_database(url)
    assert [(row.num_requests, row.num_failed) for row in usage(database, by=())] == [(1, 1)]
    database.dispose()


def test_a_second_signal_does_not_wait() -> None:
    with live_server(FakeEngine(SLOW), shutdown_grace=600) as live:
        reader = Reader(live)
        wait_until(lambda: len(reader.lines) > 2)
        live.signal()
        live.signal()
        live.thread.join(60)
        assert not live.thread.is_alive()
        reader.thread.join(60)


def test_the_drain_also_ends_a_request_in_the_queue() -> None:
    with live_server(FakeEngine(SLOW), shutdown_grace=1) as live:
        live.services.sole.admission.limits = type(live.services.sole.admission.limits)(
            max_running_sequences=1,
            max_running_tokens=10**9,
            max_queued_requests=5,
            max_queued_tokens=10**9,
        )
        first, second = Reader(live), Reader(live, n=1)
        wait_until(lambda: live.services.sole.admission.num_queued == 1)
        live.signal()
        for reader in (first, second):
            reader.thread.join(60)
        errors = [json.loads(r.lines[-1].removeprefix("data: "))["error"] for r in (first, second)]
        assert [error["code"] for error in errors] == ["service_unavailable"] * 2


def test_half_a_request_does_not_keep_its_socket() -> None:
    with live_server(FakeEngine()) as live:
        live.server.config.timeout_keep_alive = 600
        with httpx.Client() as idle:  # a connection between two requests stays open
            assert idle.get(live.url + "/health").status_code == 200
            with socket.create_connection(("127.0.0.1", live.port)) as client:
                client.settimeout(60)
                client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127")
                wait_until(lambda: len(live.server.server_state.connections) == 2)
                live.server._silent = SilentConnections(seconds=0.0)
                with suppress(ConnectionError):
                    assert client.recv(1) == b""
            wait_until(lambda: len(live.server.server_state.connections) == 1)


def test_a_body_that_does_not_arrive_is_a_408() -> None:
    with (
        live_server(FakeEngine(), body_timeout=0.3) as live,
        socket.create_connection(("127.0.0.1", live.port)) as client,
    ):
        client.settimeout(60)
        head = (
            f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\nContent-Length: 100\r\n\r\n{{"
        )
        client.sendall(head.encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_stops_reading_is_cut_off() -> None:
    engine = FakeEngine(endless("x" * 100_000, pause=0.0))
    with (
        live_server(engine, write_timeout=0.5) as live,
        socket.create_connection(("127.0.0.1", live.port)) as client,
    ):
        data = json.dumps(body(stream=True)).encode()
        head = f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
        client.sendall(head.encode() + data)
        wait_until(lambda: engine.num_running == 1)
        wait_until(lambda: engine.num_running == 0)
        wait_until(lambda: live.services.sole.admission.num_running == 0)
        assert len(engine.aborted) == 1


def test_many_idle_connections_do_not_keep_others_out() -> None:
    with live_server(FakeEngine()) as live, ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", live.port)))
        assert httpx.post(live.url + URL, json=body(), timeout=60).status_code == 200
