"""Reads several streams of the engine as one."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import cast

from stonechat_models import RequestOutput


async def merged(
    streams: Sequence[AsyncIterator[RequestOutput]], num_at_once: int
) -> AsyncGenerator[RequestOutput, None]:
    """Yield the outputs of all streams as they come. At most `num_at_once` streams run at a time.

    Raises the first error of a stream. The end, an error, or closing this ends all streams.
    """
    queue: asyncio.Queue[RequestOutput | Exception | None] = asyncio.Queue()
    places = asyncio.Semaphore(num_at_once)

    async def read(stream: AsyncIterator[RequestOutput]) -> None:
        try:
            async with places, aclosing(cast(AsyncGenerator[RequestOutput, None], stream)):
                async for output in stream:
                    queue.put_nowait(output)
        except Exception as error:
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(read(stream)) for stream in streams]
    num_running = len(tasks)
    try:
        while num_running:
            output = await queue.get()
            if isinstance(output, Exception):
                raise output
            if output is None:
                num_running -= 1
            else:
                yield output
    finally:
        for task in tasks:
            task.cancel()  # its stream then aborts its request
