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

    The work runs in this task. In a task of its own it would begin only when all other requests
    that came at the same time have been prepared, and the engine would wait for the last of them.
    """
    host, is_over = asyncio.current_task(), False
    ended: list[asyncio.Task[NoReturn]] = []
    assert host is not None

    def end_work(guard: asyncio.Task[NoReturn]) -> None:
        if not is_over and not ended:
            ended.append(guard)
            host.cancel()

    tasks = [asyncio.ensure_future(guard) for guard in (_disconnected(receive), *guards)]
    for task in tasks:
        task.add_done_callback(end_work)
    try:
        return await work
    except asyncio.CancelledError:
        if not ended or host.cancelling() > 1:
            raise
        error = ended[0].exception()
    finally:
        is_over = True
        if ended:
            host.uncancel()
        for task in tasks:
            task.cancel()
        tasks.clear()  # their errors refer to this frame
        ended.clear()
        del task
    assert error is not None, "a guard ends with an error"
    try:
        raise error
    finally:
        del error


async def _disconnected(receive: Receive) -> NoReturn:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnectedError
