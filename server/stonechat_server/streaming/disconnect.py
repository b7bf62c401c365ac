"""Work for a client that may go away."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientDisconnectedError(Exception):
    """The client went away before the answer was complete; nobody is left to be told."""


async def run_while_connected(
    receive: Receive, work: Coroutine[Any, Any, T], *guards: Coroutine[Any, Any, NoReturn]
) -> T:
    """The result of `work`, which is cancelled (and waited for) when the client goes away.

    Raises `ClientDisconnectedError` then. So does the error of a guard, which runs beside it, end
    the work. The request's body must have been read.
    """
    working = asyncio.ensure_future(work)
    watching = [asyncio.ensure_future(guard) for guard in (_disconnected(receive), *guards)]
    try:
        await asyncio.wait({working, *watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            for watch in watching:
                if watch.done():
                    watch.result()
        return working.result()
    finally:
        for task in (working, *watching):
            task.cancel()
        await asyncio.gather(working, *watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> NoReturn:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnectedError
