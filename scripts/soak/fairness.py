"""Measure how much a flood of requests with one key delays a client with another key.

    .venv/bin/python scripts/soak/fairness.py --flood 64

One client sends requests one after another: first alone, then while `--flood` clients of another
key send without pause. Prints the seconds that its requests took, and the statuses that the flood
got.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from clients import Connection, Log, Target, answer_of, headers_of

from server import start_server

MAX_TOKENS = 32


async def ask(target: Target, key: str) -> tuple[int, float]:
    """Send one plain request for a fixed number of tokens. Return its status and seconds."""
    body = target.body(max_tokens=MAX_TOKENS, ignore_eos=True, n=1, stop=None)
    started = time.monotonic()
    connection = await Connection.open(target.port)
    connection.send(json.dumps(body).encode(), headers_of(target, key, target.request_id()))
    status, headers = await connection.head()
    answer = answer_of(status, headers, await connection.rest(), key)
    await connection.close()
    return answer.status, time.monotonic() - started


async def patient(target: Target, number: int) -> list[tuple[int, float]]:
    return [await ask(target, "patient") for _ in range(number)]


async def measure(target: Target, num_flooding: int, number: int) -> dict[str, object]:
    """Measure the latencies alone and under the flood."""
    await patient(target, 3)
    alone = await patient(target, number)
    flood: Counter[int] = Counter()

    async def flood_forever() -> None:
        while True:
            status, _ = await ask(target, "eager")
            flood[status] += 1
            if status == 429:
                await asyncio.sleep(0.05)  # far less than Retry-After says

    clients = [asyncio.create_task(flood_forever()) for _ in range(num_flooding)]
    await asyncio.sleep(3.0)
    flood.clear()
    started = time.monotonic()
    under_flood = await patient(target, number)
    seconds = time.monotonic() - started
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return {
        "patient_alone_seconds": summary(alone),
        "patient_flooded_seconds": summary(under_flood),
        "patient_statuses": dict(Counter(status for status, _ in under_flood)),
        "flood_statuses_in_that_time": dict(flood),
        "flood_seconds": round(seconds, 1),
    }


def summary(answers: list[tuple[int, float]]) -> dict[str, float]:
    seconds = sorted(seconds for _, seconds in answers)
    return {"median": round(statistics.median(seconds), 3), "worst": round(seconds[-1], 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument(
        "--flood", type=int, default=64, help="number of flooding clients, of another key"
    )
    parser.add_argument(
        "--requests", type=int, default=20, help="number of requests of the patient client"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stonechat-fairness-") as folder:
        server, keys = start_server(Path(folder), arguments.model, ["--max-num-seqs", "4"])
        target = Target(server.port, "soak", keys, random.Random(1), Log(), MAX_TOKENS)
        try:
            report = asyncio.run(measure(target, arguments.flood, arguments.requests))
        finally:
            server.process.kill()
            server.process.wait()
    print(json.dumps(report, indent=2))
    return 0 if set(report["patient_statuses"]) == {200} else 1  # type: ignore[call-overload]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
