import asyncio
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest

from stonechat_server.batches_api import runner
from stonechat_server.batches_api.runner import BatchRunner

OF_REQUEST: ContextVar[str] = ContextVar("OF_REQUEST", default="nothing")


def test_a_batch_has_no_context_of_the_request_that_begins_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray Serve, and traces, keep there what ends with the request."""
    seen = []

    class Run:
        def __init__(self, *_: object) -> None: ...

        async def run(self) -> None:
            seen.append(OF_REQUEST.get())

    async def main() -> None:
        parts: Any = SimpleNamespace(num_at_once=1)
        batches = BatchRunner(parts)
        OF_REQUEST.set("a request")
        batches.begin(SimpleNamespace(id="batch_1"))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    monkeypatch.setattr(runner, "BatchRun", Run)
    asyncio.run(main())
    assert seen == ["nothing"]
