import asyncio
from contextvars import ContextVar

from stonechat_server.background import BackgroundTasks

OF_REQUEST: ContextVar[str] = ContextVar("OF_REQUEST", default="nothing")


def test_a_task_has_no_context_of_the_request_that_begins_it() -> None:
    async def read() -> str:
        return OF_REQUEST.get()

    async def main() -> str:
        OF_REQUEST.set("a request")
        return await BackgroundTasks().spawn(read())

    assert asyncio.run(main()) == "nothing"


def test_close_cancels_what_runs_and_waits_for_its_end() -> None:
    ended = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def main() -> None:
        tasks = BackgroundTasks()
        tasks.spawn(wait())
        await asyncio.sleep(0)
        await tasks.close()

    asyncio.run(main())
    assert ended == [True]
