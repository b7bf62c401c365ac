"""Replicas without Ray: scripted engines behind the records that would cross."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from stonechat_server.ray_serve.engine import ReplicatedEngine
from stonechat_server.ray_serve.prefixes import PrefixTable, split_hashes
from stonechat_server.ray_serve.replica import records
from tests.server.fake_engine import FakeEngine


@dataclass
class FakeStream:
    """A stream that a task fills, as the call over gRPC does. `cancel` cancels the task."""

    task: asyncio.Task[None] | None = None
    items: asyncio.Queue[bytes | Exception | None] = field(default_factory=asyncio.Queue)

    async def fill(self, source: AsyncIterator[bytes]) -> None:
        try:
            async for record in source:
                await self.items.put(record)
            await self.items.put(None)
        except Exception as error:
            await self.items.put(error)
        finally:
            await source.aclose()  # type: ignore[attr-defined]

    def cancel(self) -> None:
        assert self.task is not None
        self.task.cancel()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        item = await self.items.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item


@dataclass
class FakeReplicas:
    """See `engine.Replicas`. The table of the router chooses between the engines."""

    engines: dict[str, FakeEngine]
    table: PrefixTable = field(default_factory=PrefixTable)
    streams: dict[str, list[FakeStream]] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)

    def generate(self, request: bytes, hashes: bytes) -> FakeStream:
        loads = {name: engine.num_running for name, engine in self.engines.items()}
        name = self.table.rank(split_hashes(hashes), loads)[0]
        self.table.note(split_hashes(hashes), name)
        self.chosen.append(name)
        stream = FakeStream()
        source = records(self.engines[name], name, request)
        stream.task = asyncio.get_running_loop().create_task(stream.fill(source))
        self.streams.setdefault(name, []).append(stream)
        return stream

    def end_choice(self, request_id: str, index: int, replica: str) -> None:
        self.engines[replica].end_choice(request_id, index)

    def kill(self, name: str) -> None:
        """End all streams of a replica, as its death does."""
        for stream in self.streams.pop(name, []):
            stream.cancel()
            stream.items.put_nowait(ConnectionError("the actor died"))
        del self.engines[name]


def new_engine(*engines: FakeEngine) -> tuple[ReplicatedEngine, FakeReplicas]:
    """An engine over replicas `a`, `b`, …"""
    replicas = FakeReplicas({chr(ord("a") + i): engine for i, engine in enumerate(engines)})
    first = engines[0]
    return ReplicatedEngine(replicas, first.model, first.tokenizer), replicas  # type: ignore[arg-type]
