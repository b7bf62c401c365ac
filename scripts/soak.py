"""Abuse a server of our own for a while, then check that everything is back and all is accounted.

    .venv/bin/python scripts/soak.py --requests 3000 --out soak.json

Starts `stonechat serve` on the default model (or `--model`) on 127.0.0.1 with keys, limits and a
fresh ledger; sends a mix of good requests, clients that leave at any moment, slow readers, floods
and bad bodies; then waits for idle and compares blocks, slots, sockets, tasks and memory with what
they were; ends the server with SIGTERM in the middle of a last flood (or kills it with `--kill`)
and compares the ledger with what the clients saw. The exit status is 1 when anything is off.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
STONECHAT = [sys.executable, "-m", "stonechat_server.cli"]
PATH = "/v1/chat/completions"
EXPECTED_STATUSES = {200, 429, 504}
WORDS = (
    "stone",
    "river",
    "cold",
    "bright",
    "seven",
    "window",
    "music",
    "tell",
    "me",
    "about",
    "the",
    "old",
    "house",
    "near",
    "that",
)


@dataclass
class Seen:
    """What a client knows of a request that it saw to the end."""

    status: int
    key: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: str = ""


@dataclass
class Log:
    """What happened, by the kind of client."""

    seen: dict[str, Seen] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(text)


@dataclass
class Target:
    """Where to send, with which keys; `rng` makes a run repeatable."""

    port: int
    model: str
    keys: dict[str, str]
    rng: random.Random
    log: Log
    max_tokens: int
    number: int = 0
    is_ending: bool = False
    is_killed: bool = False

    def request_id(self) -> str:
        self.number += 1
        return f"soak-{self.number}"

    def body(self, **fields: Any) -> dict[str, Any]:
        words = self.rng.choices(WORDS, k=self.rng.randint(1, 40))
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": " ".join(words)}],
            "max_tokens": self.rng.randint(1, self.max_tokens),
            "ignore_eos": self.rng.random() < 0.5,
            "user": f"user-{self.rng.randint(0, 4)}",
            "temperature": self.rng.choice([0, 0.7, 1.5]),
        }
        if self.rng.random() < 0.3:
            body |= {"logprobs": True, "top_logprobs": self.rng.randint(0, 5)}
        if self.rng.random() < 0.2:
            body |= {"n": self.rng.randint(2, 4)}
        if self.rng.random() < 0.2:
            body |= {"stop": ["the", "\n"], "presence_penalty": 0.5, "seed": 7}
        return body | fields


class Connection:
    """One HTTP/1.1 exchange over a socket of its own, to be abused at will."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**20))

    def send(self, data: bytes, headers: dict[str, str], length: int | None = None) -> None:
        lines = [f"POST {PATH} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
        lines.append(f"Content-Length: {len(data) if length is None else length}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + data)

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *rest = raw.decode().split("\r\n")
        pairs = (line.partition(": ") for line in rest if line)
        return int(first.split()[1]), {name.lower(): value for name, _, value in pairs}

    async def rest(self, pause: Callable[[], Awaitable[None]] | None = None) -> bytes:
        pieces = []
        while piece := await self.reader.read(4096):
            pieces.append(piece)
            if pause is not None:
                await pause()
        return b"".join(pieces)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


def headers_of(target: Target, key: str, request_id: str, **further: str) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {target.keys[key]}",
        "Content-Type": "application/json",
        "X-Request-Id": request_id,
        **further,
    }


def dechunk(data: bytes) -> bytes:
    pieces = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        pieces.append(data[:length])
        data = data[length + 2 :]
    return b"".join(pieces)


def answer_of(status: int, headers: dict[str, str], raw: bytes, key: str) -> Seen:
    """Read an answer as a client does. Raises `ValueError` for one that is not complete."""
    data = dechunk(raw) if headers.get("transfer-encoding") == "chunked" else raw
    if not headers["content-type"].startswith("text/event-stream"):
        document = json.loads(data)
        if status != 200:
            if set(document["error"]) != {"message", "type", "param", "code"}:
                raise ValueError(f"not an error object: {document}")
            return Seen(status, key)
        return seen_of(document["usage"], {c["index"]: c for c in document["choices"]}, key)
    events = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    events = [event for event in events if not event.startswith(":")]
    if events[-1] != "[DONE]":
        error = json.loads(events[-1])["error"]
        return Seen(504 if error["code"] == "timeout" else 503, key)
    chunks = [json.loads(event) for event in events[:-1]]
    finished = {
        choice["index"]: choice
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["finish_reason"]
    }
    return seen_of(chunks[-1]["usage"], finished, key)


def seen_of(usage: dict[str, Any], choices: dict[int, Any], key: str) -> Seen:
    reasons = ",".join(choices[index]["finish_reason"] for index in sorted(choices))
    return Seen(200, key, usage["prompt_tokens"], usage["completion_tokens"], reasons)


# --- the clients ---


async def complete(target: Target, key: str = "patient", **further: str) -> None:
    """A client that reads its whole answer."""
    stream = target.rng.random() < 0.6
    options = {"stream_options": {"include_usage": True}} if stream else {}
    await exchange(target, key, target.body(stream=stream, **options), further)


async def slow_reader(target: Target) -> None:
    """A client that reads its stream with pauses, to the end."""

    async def pause() -> None:
        await asyncio.sleep(target.rng.uniform(0, 0.1))

    body = target.body(stream=True, stream_options={"include_usage": True})
    await exchange(target, "patient", body, {}, pause)


async def impatient(target: Target) -> None:
    """A client with a deadline that may be too short."""
    seconds = f"{target.rng.uniform(0.01, 1.0):.3f}"
    await complete(target, "eager", **{"X-Request-Timeout": seconds})


async def exchange(
    target: Target,
    key: str,
    body: dict[str, Any],
    further: dict[str, str],
    pause: Callable[[], Awaitable[None]] | None = None,
) -> None:
    request_id = target.request_id()
    connection = await Connection.open(target.port)
    try:
        connection.send(json.dumps(body).encode(), headers_of(target, key, request_id, **further))
        status, headers = await connection.head()
        seen = answer_of(status, headers, await connection.rest(pause), key)
        target.log.seen[request_id] = seen
        target.log.statuses[f"complete {seen.status}"] += 1
        is_drained = seen.status == 503 and target.is_ending
        if seen.status not in EXPECTED_STATUSES and not is_drained:
            target.log.problem(f"{request_id}: status {seen.status}")
        if seen.status == 429 and int(headers.get("retry-after", 0)) < 1:
            target.log.problem(f"{request_id}: 429 without Retry-After")
    except (ValueError, KeyError, IndexError) as error:
        if target.is_killed:
            target.log.statuses["cut by the end of the server"] += 1
        else:
            target.log.problem(f"{request_id}: unreadable answer: {error!r}")
    finally:
        await connection.close()


async def leaver(target: Target) -> None:
    """A client that goes away: before it has sent all, before the answer, or within it."""
    connection = await Connection.open(target.port)
    data = json.dumps(target.body(stream=target.rng.random() < 0.7)).encode()
    headers = headers_of(target, "eager", target.request_id())
    when = target.rng.choice(["body", "at once", "soon", "stream", "stream"])
    try:
        if when == "body":
            connection.send(data[: len(data) // 2], headers, length=len(data))
            await asyncio.sleep(target.rng.uniform(0, 0.05))
            return
        connection.send(data, headers)
        if when == "soon":
            await asyncio.sleep(target.rng.uniform(0, 0.5))
        elif when == "stream":
            await connection.head()
            for _ in range(target.rng.randint(0, 5)):
                await connection.reader.read(300)
    finally:
        target.log.statuses[f"left: {when}"] += 1
        if target.rng.random() < 0.5:
            connection.writer.transport.abort()
        await connection.close()


async def bad_body(target: Target) -> None:
    """A client that sends what is not a request, or not one that can be served."""
    good = target.body()
    depth = target.rng.choice([100, 100_000])
    data = target.rng.choice(
        [
            target.rng.randbytes(target.rng.randint(0, 2000)),
            json.dumps(good).encode()[: target.rng.randint(0, 60)],
            b'{"model": "m", "messages": ' + b"[" * depth + b"]" * depth + b"}",
            json.dumps(good | {"temperature": "hot"}).encode(),
            json.dumps(good | {"n": 10**30}).encode(),
            json.dumps(good | {"model": "another"}).encode(),
            json.dumps(good | {"messages": []}).encode(),
            json.dumps(
                good | {"messages": [{"role": "user", "content": "word " * 20_000}]}
            ).encode(),
            json.dumps(good | {"stop": ["x"] * 1000}).encode(),
            json.dumps(good | {"logit_bias": {"-1": 5}}).encode(),
            b"x" * (2**20),
        ]
    )
    connection = await Connection.open(target.port)
    try:
        connection.send(data, headers_of(target, "eager", target.request_id()))
        status, headers = await connection.head()
        target.log.statuses[f"bad body {status}"] += 1
        if not 400 <= status < 500:
            target.log.problem(f"a bad body was answered {status}: {data[:60]!r}")
        answer_of(status, headers, await connection.rest(), "eager")
    except (ValueError, KeyError) as error:
        target.log.problem(f"a bad body's answer is unreadable: {error!r}")
    finally:
        await connection.close()


async def flood(target: Target) -> None:
    """Many requests of one key at once."""
    await asyncio.gather(*(complete(target, "flood") for _ in range(12)))


CLIENTS = [
    (complete, 10),
    (slow_reader, 2),
    (impatient, 2),
    (leaver, 4),
    (bad_body, 3),
    (flood, 0.3),
]


async def abuse(target: Target, num_requests: int, concurrency: int) -> None:
    """Keep that many clients busy until so many requests were sent."""
    kinds = [client for client, _ in CLIENTS]
    weights = [weight for _, weight in CLIENTS]

    async def worker() -> None:
        while target.number < num_requests:
            (client,) = target.rng.choices(kinds, weights)
            try:
                async with asyncio.timeout(300):
                    await client(target)
            except (OSError, asyncio.IncompleteReadError) as error:
                target.log.statuses[f"connection: {type(error).__name__}"] += 1
            except TimeoutError:
                target.log.problem(f"{client.__name__} hung for 300 s")

    await asyncio.gather(*(worker() for _ in range(concurrency)))


# --- the server ---


@dataclass
class Server:
    """A `stonechat serve` of our own."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    def metrics(self) -> dict[str, float]:
        text = fetch(self.port, "/metrics")
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
        return values

    def footing(self) -> dict[str, float]:
        """What must come back: counts exactly, memory within a bound."""
        values, process = self.metrics(), psutil.Process(self.process.pid)
        names = (
            *("num_requests_running", "num_requests_waiting", "num_requests_admitted"),
            *("queued_tokens", "kv_cache_usage_perc", "event_loop_tasks"),
        )
        footing = {name: values[f"stonechat:{name}"] for name in names}
        footing["connections"] = len(process.net_connections("tcp"))
        footing["files"] = process.num_fds()
        footing["threads"] = process.num_threads()
        footing["resident_mib"] = round(process.memory_info().rss / 2**20, 1)
        return footing


def fetch(port: int, path: str) -> str:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def stonechat(folder: Path, *words: str) -> str:
    return subprocess.run([*STONECHAT, *words], check=True, capture_output=True, text=True).stdout


def start_server(
    folder: Path, model: str | None, extra: list[str]
) -> tuple[Server, dict[str, str]]:
    keys_file = folder / "keys.toml"
    base = ["keys", "--keys-file", str(keys_file), "add"]
    keys = {
        "patient": stonechat(folder, *base, "patient").strip(),
        "eager": stonechat(folder, *base, "eager", "--max-concurrency", "8").strip(),
        "flood": stonechat(folder, *base, "flood", "--requests-per-minute", "240").strip(),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*STONECHAT, "serve", *([model] if model else []), "--port", str(port)]
    command += ["--keys-file", str(keys_file), "--ledger", ledger_url(folder)]
    command += ["--ledger-journal", str(folder / "journal"), "--served-model-name", "soak"]
    command += ["--max-num-seqs", "16", "--max-queued-requests", "24", "--max-body-size", "512KiB"]
    command += [
        "--kv-cache-size",
        "12MiB",
        "--max-model-len",
        "512",
        "--shutdown-grace",
        "2",
        *extra,
    ]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    server = Server(process, port, folder)
    for _ in range(1200):
        try:
            fetch(port, "/ready")
            return server, keys
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise RuntimeError(f"the server did not start; see {folder / 'server.log'}")


def ledger_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'usage.db'}"


def wait_for_idle(
    server: Server, before: dict[str, float], seconds: float = 60.0
) -> dict[str, float]:
    """The footing once all counts are back, or when the time is over."""
    end = time.monotonic() + seconds
    while True:
        now = server.footing()
        if all(now[name] <= before[name] for name in COUNTS) or time.monotonic() > end:
            return now
        time.sleep(0.2)


COUNTS = (
    *("num_requests_running", "num_requests_waiting", "num_requests_admitted", "queued_tokens"),
    *("kv_cache_usage_perc", "event_loop_tasks", "connections", "files"),
)


# --- the ledger ---


def compare_ledger(folder: Path, log: Log) -> dict[str, int]:
    """Each request that a client saw to its end is in the ledger once, with the same figures."""
    from sqlalchemy import select

    from stonechat_server.ledger import Ledger, open_database
    from stonechat_server.ledger.table import requests

    Ledger(ledger_url(folder), folder / "journal").close()  # takes in what a killed server left
    database = open_database(ledger_url(folder))
    with database.connect() as connection:
        rows = connection.execute(select(requests)).mappings().all()
    database.dispose()
    by_id = Counter(row["request_id"] for row in rows)
    of_id = {row["request_id"]: row for row in rows}
    num_equal = 0
    for request_id, seen in log.seen.items():
        if seen.status == 200:
            row = of_id.get(request_id)
            expected = (
                200,
                seen.key,
                seen.prompt_tokens,
                seen.completion_tokens,
                seen.finish_reasons,
            )
            fields = ("status", "key", "prompt_tokens", "completion_tokens", "finish_reasons")
            found = tuple(row[name] for name in fields) if row else None
            if found != expected or by_id[request_id] != 1:
                log.problem(f"{request_id}: the client saw {expected}, the ledger has {found}")
            else:
                num_equal += 1
        elif seen.status in (400, 401, 404, 413, 429) and request_id in of_id:
            log.problem(f"{request_id}: refused with {seen.status}, but in the ledger")
    return {"rows": len(rows), "answers_compared": num_equal}


async def last_flood(target: Target, server: Server, how: int) -> None:
    """End the server while clients are busy."""
    target.max_tokens = 300
    clients = [asyncio.create_task(complete(target)) for _ in range(20)]
    await asyncio.sleep(1.0)
    target.is_ending, target.is_killed = True, how == signal.SIGKILL
    server.process.send_signal(how)
    await asyncio.gather(*clients, return_exceptions=True)
    await asyncio.to_thread(server.process.wait, 60)


def soak(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything; the report, whose `problems` are empty when all is well."""
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
        asyncio.run(abuse(target, arguments.requests, arguments.concurrency))
        seconds = time.monotonic() - started
        after = wait_for_idle(server, before)
        metrics = server.metrics()
        for name in COUNTS:
            if after[name] > before[name]:
                log.problem(f"{name} is {after[name]} after, and was {before[name]} before")
        grown = after["resident_mib"] - before["resident_mib"]
        if grown > arguments.memory_mib:
            log.problem(f"memory grew by {grown} MiB")
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
    parser.add_argument("--model", help="as for `stonechat serve` (default: the default model)")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--concurrency", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--memory-mib", type=float, default=64.0, help="growth that is tolerated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kill", action="store_true", help="end the server with SIGKILL")
    parser.add_argument("--out", type=Path, help="write the report there as well")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, help="further flags of the server")
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
