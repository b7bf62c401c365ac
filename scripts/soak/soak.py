"""Abuse a server for a while, then check that its resources are free and its ledger is right.

    .venv/bin/python scripts/soak/soak.py --requests 3000 --out soak.json

It starts `stonechat serve` with the default model (or `--model`) on 127.0.0.1, with keys, limits
and a fresh ledger. It sends good requests, slow readers, clients that leave at any moment, floods
and bad bodies. When the server is idle again, it compares blocks, slots, sockets, tasks and memory
with those before. In the middle of a last flood it ends the server with SIGTERM (or kills it with
`--kill`). Then it compares the ledger with what the clients saw. The exit status is 1 if there is
any problem.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from clients import Log, Target, abuse, complete

from server import COUNTS, Server, ledger_url, start_server, wait_for_idle


def compare_ledger(folder: Path, log: Log) -> dict[str, int]:
    """Check that the ledger has each whole answer of a client once, with the same figures."""
    from sqlalchemy import select

    from stonechat_server.observability.ledger import Ledger, open_database
    from stonechat_server.observability.ledger.table import requests

    Ledger(ledger_url(folder), folder / "journal").close()  # reads a killed server's journal
    database = open_database(ledger_url(folder))
    with database.connect() as connection:
        rows = connection.execute(select(requests)).mappings().all()
    database.dispose()
    num_rows = Counter(row["request_id"] for row in rows)
    row_of = {row["request_id"]: row for row in rows}
    num_equal = 0
    for request_id, answer in log.seen.items():
        if answer.status == 200:
            row = row_of.get(request_id)
            expected = (
                200,
                answer.key,
                answer.prompt_tokens,
                answer.completion_tokens,
                answer.finish_reasons,
            )
            fields = ("status", "key", "prompt_tokens", "completion_tokens", "finish_reasons")
            actual = tuple(row[name] for name in fields) if row else None
            if actual != expected or num_rows[request_id] != 1:
                log.problem(f"{request_id}: the client got {expected}, the ledger has {actual}")
            else:
                num_equal += 1
        elif answer.status in (400, 401, 404, 413, 429) and request_id in row_of:
            log.problem(f"{request_id}: was refused with {answer.status}, but is in the ledger")
    return {"rows": len(rows), "answers_compared": num_equal}


async def last_flood(target: Target, server: Server, how: int) -> None:
    """End the server with the signal `how` while clients are busy."""
    target.max_tokens = 300
    clients = [asyncio.create_task(complete(target)) for _ in range(20)]
    await asyncio.sleep(1.0)
    target.is_ending, target.is_killed = True, how == signal.SIGKILL
    server.process.send_signal(how)
    await asyncio.gather(*clients, return_exceptions=True)
    await asyncio.to_thread(server.process.wait, 60)


def soak(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything. Return the report; its `problems` are empty if all is well."""
    server, keys = start_server(folder, arguments.model, arguments.serve or [])
    log = Log()
    rng = random.Random(arguments.seed)
    target = Target(server.port, "soak", keys, rng, log, arguments.max_tokens)
    try:
        num_warm = min(200, arguments.requests // 4)
        asyncio.run(abuse(target, num_warm, arguments.concurrency))
        time.sleep(1.0)
        before = wait_for_idle(server, dict.fromkeys(COUNTS, 0.0), 5.0)
        started = time.monotonic()
        asyncio.run(abuse(target, arguments.requests, arguments.concurrency, arguments.answers))
        seconds = time.monotonic() - started
        after = wait_for_idle(server, before)
        metrics = server.metrics()
        for name in COUNTS:
            if after[name] > before[name]:
                log.problem(
                    f"{name} is {after[name]} after the load, but was {before[name]} before"
                )
        growth = after["resident_mib"] - before["resident_mib"]
        if growth > arguments.memory_mib:
            log.problem(f"memory grew by {growth} MiB")
        how = signal.SIGKILL if arguments.kill else signal.SIGTERM
        asyncio.run(last_flood(target, server, how))
    finally:
        server.process.kill()
        server.process.wait()
    if metrics["stonechat:engine_failed_steps_total"]:
        log.problem("engine steps failed")
    ledger = compare_ledger(folder, log)
    return {
        "requests": target.number,
        "seconds": round(seconds, 1),
        "ended_by": how.name,
        "exit_status": server.process.returncode,
        "outcomes": dict(sorted(log.statuses.items())),
        "before": before,
        "after": after,
        "preemptions": metrics["stonechat:num_preemptions_total"],
        "generated_tokens": metrics["stonechat:generation_tokens_total"],
        "ledger": ledger,
        "problems": log.problems,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model to serve (default: the default model)")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument(
        "--answers", type=int, default=0, help="go on until so many answers are whole"
    )
    parser.add_argument("--concurrency", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument(
        "--memory-mib", type=float, default=64.0, help="growth of memory that is allowed"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--kill", action="store_true", help="end the server with SIGKILL, not SIGTERM"
    )
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    parser.add_argument(
        "--serve", nargs=argparse.REMAINDER, help="pass all further flags to `stonechat serve`"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stonechat-soak-") as folder:
        report = soak(arguments, Path(folder))
        if report["problems"]:
            print((Path(folder) / "server.log").read_text()[-4000:], file=sys.stderr)
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
