"""A request ends at its deadline: before it waits, while it waits, and not through others."""

import asyncio
from collections.abc import Awaitable
from typing import NoReturn

import pytest

from stonechat_server.errors import APIError
from stonechat_server.serving.lifecycle import Deadline, request_timeout


async def never() -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError


async def refusal_of(deadline: Deadline, work: Awaitable[object]) -> APIError:
    with pytest.raises(APIError) as error_info:
        await deadline.wait(work)
    return error_info.value


def test_work_is_not_started_after_the_deadline() -> None:
    async def main() -> None:
        started = []

        async def work() -> None:
            started.append(True)

        deadline = Deadline(None)
        error = APIError(503, "draining")
        deadline.expire(error)
        assert await refusal_of(deadline, work()) is error
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        assert await refusal_of(deadline, future) is error
        assert not started
        assert not future.done()

    asyncio.run(main())


def test_work_is_cancelled_at_the_deadline() -> None:
    async def main() -> None:
        cancelled = []

        async def work() -> None:
            try:
                await never()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        error = await refusal_of(Deadline(0.0), work())
        assert error.status == 504
        assert "limit of 0 s" in error.message
        assert cancelled

    asyncio.run(main())


def test_an_earlier_end_has_its_own_error() -> None:
    async def main() -> None:
        deadline = Deadline(None)
        error = APIError(503, "draining")
        asyncio.get_running_loop().call_soon(deadline.expire, error)
        assert await refusal_of(deadline, never()) is error

    asyncio.run(main())


def test_a_closed_deadline_ends_nothing() -> None:
    async def main() -> None:
        deadline = Deadline(0.0)
        deadline.close()
        ticks = 0
        while ticks < 100:
            await asyncio.sleep(0)
            ticks += 1
        assert await deadline.wait(asyncio.sleep(0, "done")) == "done"
        unlimited = Deadline(None)
        unlimited.close()
        assert await unlimited.wait(asyncio.sleep(0, "done")) == "done"

    asyncio.run(main())


def test_a_cancellation_from_outside_stays_one() -> None:
    async def main() -> None:
        deadline = Deadline(None)
        task = asyncio.create_task(deadline.wait(never()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        both = Deadline(None)
        task = asyncio.create_task(both.wait(never()))
        await asyncio.sleep(0)
        task.cancel()
        both.expire(APIError(503, "draining"))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_the_header_may_only_shorten_the_limit() -> None:
    assert request_timeout("2.5", None) == 2.5
    assert request_timeout("2.5", 60.0) == 2.5
    assert request_timeout("90", 60.0) == 60.0


@pytest.mark.parametrize("header", ["", "soon", "0", "-1", "nan", "inf"])
def test_a_header_must_be_a_positive_number(header: str) -> None:
    with pytest.raises(APIError, match="above 0") as error_info:
        request_timeout(header, 60.0)
    assert error_info.value.status == 400
