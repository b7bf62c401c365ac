"""Requests with too many headers, trailers and the like, and malformed HTTP."""

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat

import pytest

from stonechat_models import FinishReason, GenerateRequest, RequestOutput
from stonechat_server.serving.connections import SilentConnections
from tests.server.bodies import body
from tests.server.fake_engine import FakeEngine, delta, output
from tests.server.live import Live, live_server, wait_until
from tests.server.serving.raw_http import (
    Answer,
    chat,
    chunked,
    chunks,
    exchange,
    parse,
    read_all,
    start,
)

KIB = 1024
HEAD = chunked()
GOOD = json.dumps(body()).encode()


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with live_server(FakeEngine()) as server:
        yield server


def fields(number: int) -> bytes:
    return b"".join(b"X-%d: y\r\n" % i for i in range(number))


Pieces = Callable[[], Iterable[bytes]]

TOO_LARGE: dict[str, Pieces] = {
    "one header": lambda: chain([start() + b"X: "], repeat(b"a" * 64 * KIB, 20)),
    "one whole header": lambda: [start() + b"X: " + b"a" * 66 * KIB + b"\r\n\r\n"],
    "one long name": lambda: [start(), b"x" * 70 * KIB],
    "headers of 80 KiB": lambda: [start(), *[b"X: " + b"a" * 8 * KIB + b"\r\n"] * 10, b"\r\n"],
    "98 headers more": lambda: [start(), fields(99), b"\r\n"],
    "many headers": lambda: chain([start()], repeat(fields(1000), 100)),
    "request line": lambda: chain([b"GET /"], repeat(b"a" * 64 * KIB, 20)),
    "request line of 66 KiB": lambda: [b"GET /" + b"a" * 66 * KIB + b" HTTP/1.1\r\n\r\n"],
    "trailers": lambda: chain([HEAD, b"1\r\n{\r\n0\r\n"], repeat(fields(1000), 100)),
    "101 trailers": lambda: [HEAD, b"1\r\n{\r\n0\r\n", fields(101), b"\r\n"],
    "one trailer": lambda: chain([HEAD, b"0\r\nX: "], repeat(b"a" * 64 * KIB, 20)),
    "chunk extension": lambda: chain([HEAD, b"1;"], repeat(b"a" * 64 * KIB, 20)),
    "chunk size": lambda: chain([HEAD], repeat(b"0" * 64 * KIB, 20)),
}


@pytest.mark.parametrize("pieces", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_is_not_body_is_bounded(live: Live, pieces: Pieces) -> None:
    answer = exchange(live.port, pieces())
    assert answer.status == 431
    assert answer.error["code"] == "headers_too_large"
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers("connection") == ["close"]
    assert answer.headers("content-type") == ["application/json"]
    assert len(answer.headers("x-request-id")) == 1
    assert exchange(live.port, [chat()]).status == 200


FINE: dict[str, Pieces] = {
    "96 headers more": lambda: [start(*[f"X-{i}: y" for i in range(95)]).strip(), b"\r\n",
                                f"Content-Length: {len(GOOD)}\r\n\r\n".encode(), GOOD],
    "a header of 60 KiB": lambda: [chat("X: " + "a" * 60 * KIB)],
    "a head in pieces": lambda: [bytes([byte]) for byte in chat()],
    "chunks of a byte": lambda: [HEAD, chunks(GOOD, 1), b"0\r\n\r\n"],
    "bytes of chunks": lambda: [HEAD, *[bytes([b]) for b in chunks(GOOD, 1) + b"0\r\n\r\n"]],
    "a long body": lambda: [chat(user="u" * 100 * KIB)],
    "a long body in tiny chunks": lambda: [
        HEAD, chunks(GOOD[:-1] + b" " * 100_000 + b"}", 1), b"0\r\n\r\n"
    ],
    "an extension": lambda: [HEAD, b"%x;a=b\r\n%b\r\n0;c\r\n\r\n" % (len(GOOD), GOOD)],
    "100 trailers": lambda: [HEAD, chunks(GOOD, 99), b"0\r\n", fields(100), b"\r\n"],
    "an offer to upgrade": lambda: [chat("Upgrade: websocket", "Sec-WebSocket-Key: x")],
}  # fmt: skip


@pytest.mark.parametrize("pieces", FINE.values(), ids=FINE)
def test_what_is_within_the_bounds_is_served(live: Live, pieces: Pieces) -> None:
    answer = exchange(live.port, pieces())
    assert answer.status == 200, answer
    assert b"\xc3\xb6rld" in answer.body


MALFORMED = {
    "method": b"FO(O / HTTP/1.1\r\nHost: a\r\n\r\n",
    "no method": b" / HTTP/1.1\r\nHost: a\r\n\r\n",
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "version": b"GET /health HTTP/x\r\nHost: a\r\n\r\n",
    "version 2.0": b"GET /health HTTP/2.0\r\nHost: a\r\n\r\n",
    "spaces in the path": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "path": b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "two hosts of HTTP/1.0": b"GET /health HTTP/1.0\r\nHost: localhost\r\nhost: b\r\n\r\n",
    "header name": b"GET /health HTTP/1.1\r\nHost: a\r\nX y: z\r\n\r\n",
    "space before the colon": b"GET /health HTTP/1.1\r\nHost: a\r\nX : z\r\n\r\n",
    "no colon": b"GET /health HTTP/1.1\r\nHost: a\r\nXyz\r\n\r\n",
    "no name": b"GET /health HTTP/1.1\r\nHost: a\r\n: z\r\n\r\n",
    "NUL": b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
    "carriage return": b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
    "two ways to end": start("Content-Length: 5", "Transfer-Encoding: chunked") + b"\r\n0\r\n\r\n",
    "two lengths": start("Content-Length: 5", "Content-Length: 6") + b"\r\nabcde",
    "length": start("Content-Length: -5") + b"\r\nabcde",
    "length in words": start("Content-Length: five") + b"\r\nabcde",
    "length beyond all bounds": start("Content-Length: " + "9" * 30) + b"\r\nabcde",
    "chunk size": HEAD + b"zz\r\nabc\r\n",
    "negative chunk size": HEAD + b"-1\r\nabc\r\n",
    "chunk size beyond all bounds": HEAD + b"f" * 30 + b"\r\n",
    "chunk longer than its size": HEAD + b"1\r\nabc\r\n",
    "trailer": HEAD + b"0\r\nX y: z\r\n\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_http_gets_the_usual_error(live: Live, data: bytes) -> None:
    answer = exchange(live.port, [data])
    assert answer.status == 400
    assert answer.error["code"] == "invalid_http"
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers("connection") == ["close"]
    assert exchange(live.port, [chat()]).status == 200


CODED = (
    ["Transfer-Encoding: gzip, chunked"],
    ["Transfer-Encoding: gzip", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: deflate,Chunked"],
    ["Transfer-Encoding: gzip"],
)


@pytest.mark.parametrize("headers", CODED, ids=str)
def test_a_body_that_is_coded_on_its_way_is_named(live: Live, headers: list[str]) -> None:
    compressed = chunks(gzip.compress(GOOD), 40) + b"0\r\n\r\n"
    answer = exchange(live.port, [start(*headers) + b"\r\n", compressed])
    assert answer.status == 415
    assert answer.error["code"] == "unsupported_encoding"
    assert "Transfer-Encoding" in answer.error["message"]


def test_a_coding_may_be_in_capitals(live: Live) -> None:
    head = HEAD.replace(b": chunked", b": \tCHUNKED ")
    assert exchange(live.port, [head, chunks(GOOD, 99), b"0\r\n\r\n"]).status == 200


def test_the_second_request_of_a_connection_is_checked_too(live: Live) -> None:
    first = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for second, status in ((chat(), 200), (start() + fields(200) + b"\r\n", 431)):
        with socket.create_connection(("127.0.0.1", live.port)) as client:
            client.settimeout(60)
            client.sendall(first)
            received = b""
            while not received.endswith(b'{"status":"ok"}'):
                received += client.recv(65536)
            client.sendall(second)
            assert parse(read_all(client)).status == status


OFFER = ("Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB")


@pytest.mark.parametrize("whole", [True, False])
def test_an_offer_of_another_protocol_does_not_lose_the_body(live: Live, whole: bool) -> None:
    """As Java's client makes it, whose connection then serves the next request too."""
    offer = [
        data.replace(b"Connection: close", b"Connection: Upgrade, HTTP2-Settings")
        for data in (chat(*OFFER), chunked(*OFFER) + chunks(GOOD, 7) + b"0\r\nX: y\r\n\r\n")
    ]
    for request in offer:
        with socket.create_connection(("127.0.0.1", live.port)) as client:
            client.settimeout(60)
            for data in [request] if whole else [bytes([byte]) for byte in request]:
                client.sendall(data)
            received = b""
            while b"system_fingerprint" not in received:
                received += client.recv(65536)
            assert parse(received).status == 200
            client.sendall(chat())
            assert read_all(client).count(b"HTTP/1.1 200 ") == 1


@pytest.mark.parametrize(
    ("ending", "status"), [(fields(101), 431), (b"X y: z\r\n", 400)], ids=["many", "malformed"]
)
def test_the_body_after_such_an_offer_is_checked(live: Live, ending: bytes, status: int) -> None:
    request = chunked(*OFFER).replace(b"Connection: close", b"Connection: Upgrade")
    assert exchange(live.port, [request, b"1\r\n{\r\n0\r\n", ending, b"\r\n"]).status == status


def test_trailers_are_not_headers() -> None:
    trailers = b"Origin: https://evil.example\r\nAuthorization: Bearer secret\r\nHost: evil\r\n\r\n"
    request = [HEAD, chunks(GOOD, 10), b"0\r\n", trailers]
    with live_server(FakeEngine()) as live:
        assert exchange(live.port, [b"".join(request)]).status == 200
        assert exchange(live.port, request).status == 200
    with live_server(FakeEngine(), api_key=["secret"]) as live:
        assert exchange(live.port, [b"".join(request)]).status == 401
        head = chunked("Authorization: Bearer secret")
        assert exchange(live.port, [head, *request[1:]]).status == 200


def held(release: threading.Event) -> Callable[[GenerateRequest], Iterator[RequestOutput | float]]:
    """A script of two pieces, the second after `release` is set."""

    def play(request: GenerateRequest) -> Iterator[RequestOutput | float]:
        yield output(request, delta("first"))
        while not release.is_set():
            yield 0.005
        yield output(request, delta("second", finish=FinishReason.STOP), finished=True)

    return play


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_has_ended_its_side_gets_its_answer(version: str, stream: bool) -> None:
    release = threading.Event()
    with (
        live_server(FakeEngine(held(release))) as live,
        socket.create_connection(("127.0.0.1", live.port)) as client,
    ):
        client.settimeout(60)
        request = chat(version=version, stream=stream).replace(b"Connection: close\r\n", b"")
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + request)
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: any(c.is_half_closed for c in live.server.server_state.connections))
        release.set()
        received = read_all(client)
    assert statuses(received) == [b"200", b"200"]
    assert b"second" in received


def statuses(received: bytes) -> list[bytes]:
    """What stands behind each version of HTTP: the status of an answer."""
    return [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]


def test_a_client_may_end_its_side_in_the_middle_of_an_answer() -> None:
    """Nothing gets into a stream, though the answer to a later request has not begun."""
    release = threading.Event()
    with (
        live_server(FakeEngine(held(release))) as live,
        socket.create_connection(("127.0.0.1", live.port)) as client,
    ):
        client.settimeout(60)
        get = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        client.sendall(get + chat(stream=True).replace(b"Connection: close\r\n", b"") + get)
        received = bytearray()
        while b"first" not in received:
            received += client.recv(65536)
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: any(c.is_half_closed for c in live.server.server_state.connections))
        release.set()
        received += read_all(client)
    assert statuses(received) == [b"200"] * 3
    assert b"second" in received


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_request_of_a_client_that_has_left_ends(version: str, stream: bool) -> None:
    engine = FakeEngine(held(threading.Event()))
    sent = chat(version=version, stream=stream)
    with live_server(engine) as live:
        with socket.create_connection(("127.0.0.1", live.port)) as client:
            client.sendall(sent)
            wait_until(lambda: engine.requests)
        wait_until(lambda: engine.aborted)
        wait_until(lambda: not live.server.server_state.connections)


@pytest.mark.parametrize("data", [start(), HEAD + b"1\r\n"], ids=["head", "body"])
def test_half_a_request_without_more_to_come_ends_the_connection(live: Live, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", live.port)) as client:
        client.settimeout(60)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""


@pytest.mark.parametrize("garbage", [b"garbage\r\n\r\n", start() + fields(200) + b"\r\n"])
def test_no_error_gets_into_an_answer_that_has_begun(garbage: bytes) -> None:
    release = threading.Event()
    with (
        live_server(FakeEngine(held(release))) as live,
        socket.create_connection(("127.0.0.1", live.port)) as client,
    ):
        client.settimeout(60)
        request = chat(stream=True).replace(b"Connection: close\r\n", b"")
        client.sendall(request)
        received = bytearray()
        while b"first" not in received:
            received += client.recv(65536)
        client.sendall(garbage)
        received += read_all(client)
        release.set()
    answer, _, rest = received.partition(b"\r\n0\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not rest or 400 <= parse(rest).status < 500


def test_a_stream_goes_on_while_endless_headers_arrive() -> None:
    """The stream's next piece is let go in the middle of the attack, and arrives before its end."""
    release = threading.Event()
    with (
        live_server(FakeEngine(held(release))) as live,
        socket.create_connection(("127.0.0.1", live.port)) as neighbour,
        socket.create_connection(("127.0.0.1", live.port)) as attacker,
    ):
        for client in (neighbour, attacker):
            client.settimeout(60)
        neighbour.sendall(chat(stream=True))
        received = bytearray()
        while b"first" not in received:
            received += neighbour.recv(65536)
        attacker.sendall(start() + b"X: ")
        for number in range(80):
            attacker.sendall(b"a" * 256 * KIB)
            if number == 10:
                release.set()
        received += read_all(neighbour)
        assert b"second" in received
        attacker.sendall(b"a" * KIB)  # the server still reads, and has kept nothing of it
        assert parse(read_all(attacker)).status == 431


def test_a_refused_connection_is_closed_though_its_client_stays() -> None:
    with (
        live_server(FakeEngine()) as live,
        socket.create_connection(("127.0.0.1", live.port)) as client,
    ):
        client.settimeout(60)
        client.sendall(HEAD + b"0\r\n" + fields(200) + b"\r\n")
        assert parse(read_all(client)).status == 431
        live.server._silent = SilentConnections(seconds=0.0)
        wait_until(lambda: not live.server.server_state.connections)


def test_a_refused_connection_does_not_hold_up_the_end() -> None:
    with (
        live_server(FakeEngine()) as live,
        socket.create_connection(("127.0.0.1", live.port)) as client,
    ):
        client.settimeout(60)
        client.sendall(HEAD + b"0\r\n" + fields(200) + b"\r\n")
        assert parse(read_all(client)).status == 431
        assert len(live.server.server_state.connections) == 1
        live.signal()
        live.thread.join(60)
        assert not live.thread.is_alive()


def http_1_0(live: Live, *headers: str, **body_fields: object) -> Answer:
    request = chat(*headers, version="1.0", **body_fields).replace(b"Connection: close\r\n", b"")
    return exchange(live.port, [request])


@pytest.mark.parametrize("headers", [(), ("Connection: keep-alive",)])
def test_http_1_0_has_no_chunks(live: Live, headers: tuple[str, ...]) -> None:
    answer = http_1_0(live, *headers, stream=True)
    assert answer.status == 200
    assert answer.headers("transfer-encoding") == answer.headers("content-length") == []
    assert answer.headers("connection") == ["close"]
    assert answer.body.startswith(b"data: {")
    assert answer.body.endswith(b"}\n\ndata: [DONE]\n\n")
    plain = http_1_0(live, *headers)
    assert plain.headers("transfer-encoding") == []
    assert plain.headers("content-length") == [str(len(plain.body))]
    assert plain.headers("connection") == ["close"]
    assert json.loads(plain.body)["choices"][0]["message"]["content"] == "Hello wörld 👋"


def test_http_1_0_needs_no_host(live: Live) -> None:
    """As health checks of load balancers ask."""
    answer = exchange(live.port, [b"GET /health HTTP/1.0\r\n\r\n"])
    assert (answer.status, answer.body) == (200, b'{"status":"ok"}')
    foreign = b"GET /health HTTP/1.0\r\nOrigin: http://evil.example\r\n\r\n"
    assert exchange(live.port, [foreign]).status == 403


def test_an_error_in_a_stream_of_http_1_0_is_sent() -> None:
    def fails(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        return [output(request, delta("x")), RuntimeError("no")]

    with live_server(FakeEngine(fails)) as live:
        answer = http_1_0(live, stream=True)
    assert answer.headers("transfer-encoding") == []
    assert b'"server_error"' in answer.body.rpartition(b"data: ")[2]


def test_a_stream_of_http_1_1_has_one_connection_header(live: Live) -> None:
    answer = exchange(live.port, [chat(stream=True)])
    assert answer.headers("connection") == ["close"]
    assert answer.headers("transfer-encoding") == ["chunked"]
    assert answer.body.endswith(b"\r\n0\r\n\r\n")


def test_an_announced_body_beyond_the_bound_is_refused_unread(live: Live) -> None:
    answer = exchange(live.port, [start(f"Content-Length: {10**15}") + b"\r\n{"])
    assert answer.status == 413
    assert answer.error["code"] == "request_too_large"
