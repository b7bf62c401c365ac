"""The source of ready-made chunks, and what the load generator measures with it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from stonechat_server.bench import selftest
from stonechat_server.bench.selftest import GeneratorSpeed
from stonechat_server.bench.targets.target import BenchError


class Ready:
    """Receives the source's port, as the parent's end of a pipe does."""

    def __init__(self) -> None:
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def send(self, port: int) -> None:
        self.port.set_result(port)


def with_source(use: Callable[[int], Awaitable[object]]) -> object:
    """Run `use` with the port of a source in the same loop."""

    async def main() -> object:
        ready = Ready()
        source = asyncio.create_task(selftest._serve(ready))  # type: ignore[arg-type]
        try:
            return await asyncio.wait_for(use(await ready.port), 60)
        finally:
            source.cancel()
            await asyncio.gather(source, return_exceptions=True)

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def _few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "TOKENS_PER_STREAM", 20)


def test_the_source_sends_one_chunk_per_token_over_http() -> None:
    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 4\r\n\r\n"
        writer.write(request)
        await writer.drain()
        writer.write(b"{  }")
        answer = await reader.readuntil(b"0\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        return answer

    answer = with_source(ask)
    assert isinstance(answer, bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    events = []
    while not body.startswith(b"0\r\n"):
        size, _, body = body.partition(b"\r\n")
        events.append(body[: int(size, 16)].decode().removeprefix("data: ").strip())
        assert body[int(size, 16) :].startswith(b"\r\n")
        body = body[int(size, 16) + 2 :]
    assert events.pop() == "[DONE]"
    *tokens, finish, usage = map(json.loads, events)
    texts = [chunk["choices"][0]["delta"]["content"] for chunk in tokens]
    assert texts == [f" word{number}" for number in range(20)]
    assert finish["choices"][0]["finish_reason"] == "length"
    assert usage["usage"]["completion_tokens"] == 20


def test_the_generator_reads_every_token() -> None:
    speed = with_source(lambda port: selftest._drive(port, 6))
    assert isinstance(speed, GeneratorSpeed)
    assert speed.num_tokens == 120
    assert speed.tokens_per_second > 0
    assert speed.tokens_per_core_second > 0


def test_incomplete_streams_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def drive(port: int) -> object:
        monkeypatch.setattr(selftest, "TOKENS_PER_STREAM", 21)  # more than the source sends
        return await selftest._drive(port, 2)

    with pytest.raises(BenchError, match="2 streams are incomplete"):
        with_source(drive)


def test_a_source_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    process = SimpleNamespace(
        start=lambda: None,
        terminate=lambda: ended.append("terminate"),
        join=lambda: ended.append("join"),
    )
    receiver = SimpleNamespace(poll=lambda seconds: False)
    context = SimpleNamespace(
        Pipe=lambda duplex: (receiver, None), Process=lambda **options: process
    )
    monkeypatch.setattr(selftest.multiprocessing, "get_context", lambda _: context)
    with pytest.raises(BenchError, match="did not start"):
        selftest.measure_generator()
    assert ended == ["terminate", "join"]
