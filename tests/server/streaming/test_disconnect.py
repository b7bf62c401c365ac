"""Work ends with its result, its client or a guard, and is always waited for."""

import asyncio
import contextlib
import gc
from typing import NoReturn

import pytest
from starlette.types import Message, Receive

from stonechat_server.streaming.sse import ClientDisconnectedError, run_while_connected


def receive_of(*types: str) -> Receive:
    """Return a `receive` that gives these messages, and then waits for ever."""
    waiting = list(types)

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()
        return {"type": waiting.pop(0)}

    return receive


class Work:
    """Waits for ever, and notes that it was cancelled and has cleaned up."""

    has_ended = False

    async def run(self) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.has_ended = True
        return "never"


async def never() -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError


def test_the_result_is_returned_and_the_guards_end() -> None:
    guard_ended = []

    async def guard() -> NoReturn:
        try:
            return await never()
        finally:
            guard_ended.append(True)

    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    assert asyncio.run(run_while_connected(receive_of(), work(), guard())) == "done"
    assert guard_ended


def test_the_error_of_the_work_is_raised() -> None:
    async def work() -> str:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(run_while_connected(receive_of(), work()))


def test_the_error_of_the_work_does_not_keep_the_work() -> None:
    """Without a collection of garbage."""

    class Large:
        pass

    async def fail(_: Large) -> None:
        raise ValueError

    async def run() -> int:
        with contextlib.suppress(ValueError):
            await run_while_connected(receive_of("http.request"), fail(Large()))
        await asyncio.sleep(0)  # the event loop lets go of the tasks
        return sum(type(thing) is Large for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(run()) == 0
    finally:
        gc.enable()


def test_only_a_disconnect_ends_the_work() -> None:
    work = Work()
    receive = receive_of("http.request", "http.request", "http.disconnect")
    with pytest.raises(ClientDisconnectedError):
        asyncio.run(run_while_connected(receive, work.run(), never()))
    assert work.has_ended


def test_other_messages_do_not_end_the_work() -> None:
    async def work() -> str:
        for _ in range(20):
            await asyncio.sleep(0)
        return "done"

    receive = receive_of("http.request", "http.request")
    assert asyncio.run(run_while_connected(receive, work())) == "done"


def test_the_error_of_a_guard_ends_the_work() -> None:
    async def guard() -> NoReturn:
        raise TimeoutError("too long")

    work = Work()
    with pytest.raises(TimeoutError, match="too long"):
        asyncio.run(run_while_connected(receive_of(), work.run(), never(), guard()))
    assert work.has_ended


def test_a_result_goes_before_a_disconnect_at_the_same_time() -> None:
    async def work() -> str:
        return "done"

    assert asyncio.run(run_while_connected(receive_of("http.disconnect"), work())) == "done"
