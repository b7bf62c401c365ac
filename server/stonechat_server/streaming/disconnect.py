"""Runs work for a client that may disconnect."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientDisconnectedError(Exception):
    """The client disconnected before the answer was complete. Nobody can receive an error."""


async def run_while_connected(
    receive: Receive, work: Coroutine[Any, Any, T], *guards: Coroutine[Any, Any, NoReturn]
) -> T:
    """Run `work` and return its result. Raises `ClientDisconnectedError` if the client disconnects.

    The guards run beside the work; the error of a guard is raised. In both cases the work is
    cancelled and waited for. The body of the request must have been read before.
    """
    work_task = asyncio.ensure_future(work)
    guard_tasks = [asyncio.ensure_future(guard) for guard in (_disconnected(receive), *guards)]
    try:
        await asyncio.wait({work_task, *guard_tasks}, return_when=asyncio.FIRST_COMPLETED)
        if not work_task.done():
            for guard_task in guard_tasks:
                if guard_task.done():
                    guard_task.result()
        return work_task.result()
    finally:
        for task in (work_task, *guard_tasks):
            task.cancel()
        await asyncio.gather(work_task, *guard_tasks, return_exceptions=True)
        del work_task, guard_tasks, task  # their errors refer to this frame


async def _disconnected(receive: Receive) -> NoReturn:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnectedError
