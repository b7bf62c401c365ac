"""Tasks of the event loop that outlive the requests that begin them."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class BackgroundTasks:
    """Holds the tasks, which the event loop itself does not."""

    def __init__(self) -> None:
        self.running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run `work` apart from the caller, whose context variables are not its own."""
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return task

    async def close(self) -> None:
        """Cancel all tasks, and wait for their ends."""
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)


async def end_all(tasks: list[asyncio.Task[T]]) -> None:
    """Cancel the tasks, wait for their ends, and empty the list.

    The traceback of a task's error refers to the frame that has the list: with the tasks in it, all
    that the frame has would stay until the next collection of garbage.
    """
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tasks.clear()


def call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Call back on the event loop, from any thread. Nothing happens once the loop is closed."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)
