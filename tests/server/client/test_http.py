"""The lean HTTP client against raw sockets with scripted answers."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from stonechat_server.client.http import HttpClient, TransportError

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
    return head + await reader.readexactly(length)


def answer(*pieces: bytes, close: bool = True) -> Serve:
    """Answers each request with the pieces, each in a write of its own."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await read_request(reader)
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(0.005)
                if close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return serve


def ask(serve: Serve, times: int = 1, timeout: float = 60.0) -> list[tuple[int, bytes]]:
    """Status and body of each of `times` requests, one after the other."""

    async def run() -> list[tuple[int, bytes]]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        results = []
        async with server, HttpClient(f"127.0.0.1:{port}/v1/", {"X-Test": "1"}) as client:
            assert client.api_path == "/v1"
            for _ in range(times):
                body: list[bytes] = []
                response = await client.request(
                    "POST", "/v1/x", b"{}", lambda data, _, keep=body.append: keep(data), timeout
                )
                results.append((response.status, b"".join(body)))
                await asyncio.sleep(0.02)
        return results

    return asyncio.run(run())


OK = b"HTTP/1.1 200 OK\r\n"


def test_each_way_of_framing_a_body() -> None:
    assert ask(answer(OK + b"Content-Length: 5\r\n\r\n", b"he", b"llo")) == [(200, b"hello")]
    chunked = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    assert ask(answer(chunked, b"2\r\nhe\r\n3\r", b"\nllo\r\n", b"0\r\n\r\n")) == [(200, b"hello")]
    assert ask(answer(OK + b"\r\n", b"until ", b"the end")) == [(200, b"until the end")]
    assert ask(answer(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")) == [(404, b"")]


def test_a_connection_is_used_again() -> None:
    connections = []
    inner = answer(OK + b"Content-Length: 2\r\n\r\nok", close=False)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await inner(reader, writer)

    assert ask(serve, times=3) == [(200, b"ok")] * 3
    assert len(connections) == 1


def test_a_closed_idle_connection_is_replaced() -> None:
    assert ask(answer(OK + b"Content-Length: 2\r\n\r\nok"), times=3) == [(200, b"ok")] * 3


@pytest.mark.parametrize(
    "pieces",
    [
        (OK + b"Content-Length: 50\r\n\r\n", b"half"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhe"),
        (b"",),
    ],
)
def test_an_incomplete_answer_is_an_error(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(TransportError, match="cut"):
        ask(answer(*pieces))


def test_an_answer_that_is_not_http_is_an_error() -> None:
    with pytest.raises(TransportError, match="not HTTP"):
        ask(answer(b"SSH-2.0-OpenSSH_9.2\r\n"))


def test_silence_ends_in_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        ask(answer(OK + b"Content-Length: 5\r\n\r\n", b"he", close=False), timeout=0.2)


def test_cancelling_closes_the_connection() -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        writer.write(OK + b"Content-Length: 9\r\n\r\n")
        await reader.read()
        closed.set()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, HttpClient(f"http://127.0.0.1:{port}", {}) as client:
            request = asyncio.ensure_future(
                client.request("GET", "/", b"", lambda data, now: None, 60.0)
            )
            await asked.wait()
            request.cancel()
            await asyncio.wait_for(closed.wait(), 60)

    asyncio.run(run())


@pytest.mark.parametrize("url", ["ftp://x", "http://", "unix:///x"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not an http"):
        HttpClient(url, {})
