"""The work on the lines of a batch, whatever fails beside it."""

import asyncio
from pathlib import Path

import msgspec

from stonechat_server.batches_api.lines import Answered, InputLine
from stonechat_server.batches_api.results import ResultLog
from stonechat_server.batches_api.work import BatchWork


def test_results_are_recorded_although_the_progress_cannot_be_noted(tmp_path: Path) -> None:
    lines = [InputLine(f"r{i}", "POST", "/", msgspec.Raw(b"{}")) for i in range(20)]
    num_notes = 0

    async def answer(line: InputLine) -> Answered:
        await asyncio.sleep(0)
        return Answered(200, line.custom_id, b"{}")

    async def note() -> None:
        nonlocal num_notes
        num_notes += 1
        raise OSError("the database is locked")

    async def work() -> None:
        await BatchWork(
            lines=(line for line in lines),
            answer=answer,
            results=results,
            run_blocking=asyncio.to_thread,
            slots=asyncio.Semaphore(2),
            num_at_once=2,
            on_results=note,
        ).run()

    results = ResultLog(tmp_path / "output", tmp_path / "errors")
    results.open()
    asyncio.run(work())
    results.close()
    assert num_notes > 1
    assert results.done == {line.custom_id for line in lines}
    assert len((tmp_path / "output").read_bytes().splitlines()) == len(lines)
