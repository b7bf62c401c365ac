"""Measure the microseconds that admission, deadlines and the ledger add. Needs no model.

PYTHONPATH=server:models .venv/bin/python scripts/bench/operations.py
"""

import asyncio
import json
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from stonechat_server.access.keys import ApiKey
from stonechat_server.admission.controller import AdmissionControl
from stonechat_server.admission.fair_queue import Cost
from stonechat_server.admission.limits import AdmissionLimits
from stonechat_server.observability.ledger import Ledger, LedgerEntry
from stonechat_server.serving.lifecycle import Deadline

NUMBER = 20_000
LIMITS = AdmissionLimits(
    max_running_sequences=64,
    max_running_tokens=10**9,
    max_queued_requests=512,
    max_queued_tokens=10**9,
)
KEY = ApiKey(name="k", requests_per_minute=10**9, tokens_per_minute=10**9)


def per_item(seconds: float) -> float:
    return round(seconds / NUMBER * 1e6, 1)


async def slots() -> float:
    """Return the seconds to admit and leave `NUMBER` times, with a rate-limited key."""
    admission = AdmissionControl(LIMITS)
    started = time.perf_counter()
    for _ in range(NUMBER):
        place = await admission.admit(KEY, Cost(200, 200), tenant="k", queue_timeout=60)
        admission.leave(place)
    return time.perf_counter() - started


async def numbers() -> AsyncIterator[int]:
    for number in range(NUMBER):
        yield number


async def deadline() -> float:
    """Return the seconds that a deadline adds to `NUMBER` outputs of the engine."""
    started = time.perf_counter()
    async for _ in numbers():
        pass
    plain, started = time.perf_counter() - started, time.perf_counter()
    deadline, iterator = Deadline(600.0), numbers()
    while await deadline.wait(anext(iterator, None)) is not None:
        pass
    deadline.close()
    return time.perf_counter() - started - plain


def ledger() -> tuple[float, float]:
    """Return the seconds to record `NUMBER` entries, and until all are in SQLite."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(f"sqlite:///{folder}/usage.db", Path(folder) / "journal", 0.2)
        started = time.perf_counter()
        for _ in range(NUMBER):
            ledger.record(
                LedgerEntry(id=uuid.uuid4().hex, created=1.0, request_id="r", key="k", model="m")
            )
        record_seconds = time.perf_counter() - started
        ledger.close()
        return record_seconds, time.perf_counter() - started


def main() -> None:
    record_seconds, write_seconds = ledger()
    report = {
        "slot_microseconds": per_item(asyncio.run(slots())),
        "deadline_microseconds_an_output": per_item(asyncio.run(deadline())),
        "ledger_record_microseconds": per_item(record_seconds),
        "ledger_rows_a_second_into_sqlite": round(NUMBER / write_seconds),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
