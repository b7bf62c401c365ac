"""Kill engines of a `stonechat ray deploy` while clients use it, and update it; compare the ledger.

    .venv/bin/python scripts/soak/replicas.py --model DIR --replicas 2 --out replicas.json

Needs the extra `ray`, and no other Ray cluster on this machine. First come all kinds of clients,
as in `soak.py`. Then patient clients, while the processes of engines are killed with SIGKILL: only
streams that ran there may end with 503. Then patient clients, while an update replaces all engines
and the ingress: no request may fail. At the end the ledger must have what the clients saw. The exit
status is 1 if there is any problem.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
from clients import Log, Target, abuse, complete
from soak import compare_ledger

from server import ROOT, free_port, ledger_url, new_keys, start

REPLICA = "ServeReplica:stonechat:Replica"


@dataclass
class Deployment:
    """A `stonechat ray deploy` that this process started."""

    process: subprocess.Popen[bytes]

    def replicas(self) -> list[psutil.Process]:
        """The processes of the engines."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if any(REPLICA in word for word in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def update(self, *flags: str) -> None:
        """Deploy again with further flags; return when all is replaced."""
        command = [*cast("list[str]", self.process.args), *flags, "--address", "auto"]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT, timeout=300)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)


def deploy(arguments: argparse.Namespace, folder: Path, port: int) -> tuple[Deployment, Any]:
    keys = new_keys(folder)
    flags = [*([arguments.model] if arguments.model else []), "--replicas", str(arguments.replicas)]
    flags += ["--kv-cache-size", "12MiB", "--max-num-seqs", "16", "--max-model-len", "512"]
    flags += ["--max-body-size", "512KiB"]
    return Deployment(start(folder, port, "ray", "deploy", *flags)), keys


async def patient_clients(target: Target, concurrency: int, until: asyncio.Event) -> None:
    """Keep `concurrency` clients busy that read their whole answers."""

    async def worker() -> None:
        while not until.is_set():
            try:
                async with asyncio.timeout(300):
                    await complete(target)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                target.log.problem(f"a patient client: {error!r}")

    await asyncio.gather(*(worker() for _ in range(concurrency)))


async def kill_replicas(
    target: Target, deployment: Deployment, arguments: argparse.Namespace
) -> int:
    """Kill one engine after the other, each as soon as the last was replaced."""
    target.is_ending = True  # 503 is expected
    over = asyncio.Event()
    clients = asyncio.create_task(patient_clients(target, arguments.concurrency, over))
    num_killed = 0
    for _ in range(arguments.kills):
        await asyncio.sleep(target.rng.uniform(1.0, 3.0))
        for _ in range(1200):
            replicas = deployment.replicas()
            if len(replicas) >= arguments.replicas:
                break
            await asyncio.sleep(0.1)
        target.rng.choice(replicas).kill()
        num_killed += 1
    await asyncio.sleep(3.0)
    over.set()
    await clients
    target.is_ending = False
    return num_killed


async def update(target: Target, deployment: Deployment, concurrency: int) -> float:
    """Replace all processes while clients use them. Return the seconds that it took."""
    over = asyncio.Event()
    clients = asyncio.create_task(patient_clients(target, concurrency, over))
    await asyncio.sleep(1.0)
    begin = time.monotonic()
    await asyncio.to_thread(deployment.update, "--max-batch-tokens", "256")
    seconds = time.monotonic() - begin
    await asyncio.sleep(3.0)
    over.set()
    await clients
    return seconds


def compare_failures(folder: Path, log: Log) -> int:
    """Check that the ledger has a 503 for each that a client saw. Return their number."""
    from sqlalchemy import select

    from stonechat_server.observability.ledger import open_database
    from stonechat_server.observability.ledger.table import requests

    with open_database(ledger_url(folder)).connect() as connection:
        status_of = {row.request_id: row.status for row in connection.execute(select(requests))}
    failed = [request_id for request_id, seen in log.seen.items() if seen.status == 503]
    for request_id in failed:
        if status_of.get(request_id) != 503:
            log.problem(f"{request_id}: the client saw 503, the ledger {status_of.get(request_id)}")
    return len(failed)


def outcomes(log: Log) -> dict[str, int]:
    found, log.statuses = dict(sorted(log.statuses.items())), Counter()
    return found


def soak(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    port = free_port()
    deployment, keys = deploy(arguments, folder, port)
    log = Log()
    target = Target(port, "soak", keys, random.Random(arguments.seed), log, 64)
    try:
        asyncio.run(abuse(target, arguments.requests, arguments.concurrency))
        report: dict[str, Any] = {"abuse": outcomes(log)}
        target.max_tokens = arguments.max_tokens
        report["killed"] = asyncio.run(kill_replicas(target, deployment, arguments))
        report["while_killed"] = outcomes(log)
        seconds = asyncio.run(update(target, deployment, arguments.concurrency))
        report |= {"update_seconds": round(seconds, 1), "while_updated": outcomes(log)}
    finally:
        deployment.stop()
    report["ledger"] = compare_ledger(folder, log)
    report["failures_compared"] = compare_failures(folder, log)
    return report | {"requests": target.number, "problems": log.problems}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model to serve (default: the default model)")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory() as folder:
        report = soak(arguments, Path(folder))
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
