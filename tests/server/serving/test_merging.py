"""Several streams of the engine read as one."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from stonechat_models import EngineDeadError, RequestOutput, RequestTimings
from stonechat_server.serving.merging import merged


def an_output(request_id: str) -> RequestOutput:
    return RequestOutput(request_id, (), 1, 0, False, RequestTimings(0.0))


class Streams:
    """Streams that yield outputs with their name, and sleep for nothing between them."""

    def __init__(self) -> None:
        self.num_running = self.most_running = 0
        self.ended: list[str] = []

    async def stream(
        self, name: str, num_outputs: int, error: Exception | None = None
    ) -> AsyncIterator[RequestOutput]:
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            for _ in range(num_outputs):
                await asyncio.sleep(0)
                yield an_output(name)
            if error is not None:
                raise error
        finally:
            self.num_running -= 1
            self.ended.append(name)


async def ids_of(streams: list[AsyncIterator[RequestOutput]], num_at_once: int) -> list[str]:
    return [output.request_id async for output in merged(streams, num_at_once)]


def test_the_outputs_of_all_streams_come_as_they_are_made() -> None:
    streams = Streams()
    ids = asyncio.run(ids_of([streams.stream(name, 3) for name in "abc"], 8))
    assert ids == list("abcabcabc")
    assert (streams.num_running, streams.most_running) == (0, 3)


def test_few_streams_run_at_a_time() -> None:
    streams = Streams()
    ids = asyncio.run(ids_of([streams.stream(name, 2) for name in "abcd"], 2))
    assert sorted(ids) == list("aabbccdd")
    assert set(ids[:4]) == {"a", "b"}
    assert streams.most_running == 2


def test_an_error_ends_all_streams() -> None:
    streams = Streams()
    ids: set[str] = set()

    async def read() -> None:
        failing = streams.stream("b", 1, EngineDeadError("dead"))
        async for output in merged([streams.stream("a", 99), failing, streams.stream("c", 9)], 2):
            ids.add(output.request_id)

    async def main() -> None:
        with pytest.raises(EngineDeadError):
            await read()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert ids == {"a", "b"}
    assert sorted(streams.ended) == ["a", "b"]


def test_closing_ends_the_streams() -> None:
    streams = Streams()

    async def main() -> None:
        outputs = merged([streams.stream(name, 99) for name in "ab"], 2)
        await anext(outputs)
        await outputs.aclose()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert (streams.num_running, sorted(streams.ended)) == (0, ["a", "b"])
