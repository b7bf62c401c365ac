"""A replica: one engine, without HTTP."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from stonechat_models import AsyncEngine, EngineError, RequestOutput
from stonechat_server.ray_serve.prefixes import HASH_SIZE
from stonechat_server.ray_serve.wire import (
    Accepted,
    Description,
    Failed,
    Output,
    decode_request,
    encode,
    tokenizer_files,
)
from stonechat_server.settings import Settings

MAX_REPORTED_PROMPTS = 1024
RESTART_CHECK_SECONDS = 0.1


async def records(
    engine: AsyncEngine, name: str, data: bytes, interval: float = 0.0
) -> AsyncGenerator[bytes, None]:
    """Run an encoded request, and yield the encoded records of its stream.

    It waits for an engine that starts again: refused at once, requests would leave this replica
    with the fewest, and the router would send all others here too.

    After each output, the next one is taken `interval` seconds later: the engine joins what comes
    meanwhile.
    """
    now = time.monotonic()
    request = replace(decode_request(data), arrival_time=now)
    yield encode(Accepted(name, now))
    while not engine.is_alive and engine.failure is None:
        await asyncio.sleep(RESTART_CHECK_SECONDS)
    stream = cast("AsyncGenerator[RequestOutput, None]", engine.generate(request))
    try:
        async with aclosing(stream) as outputs:
            async for output in outputs:
                sent = time.monotonic()
                yield encode(Output(output))
                if not output.finished and (pause := sent + interval - time.monotonic()) > 0:
                    await asyncio.sleep(pause)
    except EngineError as error:
        yield encode(Failed.of(error))


class Replica:
    """The deployment class. Ray Serve makes one object in each replica's process.

    It calls plain methods in threads. Those here are coroutines: the engine has one thread.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, settings: Mapping[str, Any], interval: float
    ) -> None:
        """Load the model. Raises `ModelLoadError`. `interval`: see `records`."""
        from ray import serve

        self._name = serve.get_replica_context().replica_id.unique_id
        config = Settings(**settings).engine_config()
        self._engine = await asyncio.to_thread(AsyncEngine.from_config, config)
        await self._engine.start()
        self._interval = interval
        self._prompts: deque[bytes] = deque(maxlen=MAX_REPORTED_PROMPTS)
        self._num_running = 0

    async def describe(self) -> bytes:
        """The encoded `Description` of the model."""
        folder = self._engine.tokenizer.path.parent
        files = await asyncio.to_thread(tokenizer_files, folder)
        return encode(Description(model=self._engine.model, files=files))

    async def generate(self, data: bytes, hashes: bytes) -> AsyncIterator[bytes]:
        """Yield the records of one request; see `wire`. Closing the iterator aborts it."""
        if hashes:
            self._prompts.append(hashes[-HASH_SIZE:])
        self._num_running += 1
        try:
            async with aclosing(records(self._engine, self._name, data, self._interval)) as stream:
                async for record in stream:
                    yield record
        finally:
            self._num_running -= 1

    async def end_choice(self, request_id: str, index: int, replica: str) -> None:
        """End one choice of a request that runs here; `replica` is for the router."""
        self._engine.end_choice(request_id, index)

    async def record_routing_stats(self) -> dict[str, Any]:
        """What the routers of all ingresses are told.

        That is the last hash of each recent prompt, and whether the engine starts again.
        """
        return {
            "prompts": b"".join(self._prompts),
            "num_running": self._num_running,
            "is_alive": self._engine.is_alive,
        }

    async def check_health(self) -> None:
        """Raise an error if the engine is lost for good. Ray Serve then replaces the replica."""
        if self._engine.failure is not None:
            raise RuntimeError(str(self._engine.failure))

    async def __del__(self) -> None:
        """Ray Serve calls this after the last request of a replica that it stops."""
        engine = getattr(self, "_engine", None)
        if engine is not None:
            await engine.shutdown()
