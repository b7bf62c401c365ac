"""Attack a server while others use it, and check that they hardly notice.

    .venv/bin/python scripts/soak/attacks.py --only one_header --out attacks.json

Each attack of `ATTACKS` gets a fresh `stonechat serve`. One client streams all the time: first
alone, then while attackers send the attack again and again from a process of their own. Another
client asks for a JSON object meanwhile. Then the server gets SIGTERM under attack. The exit status
is 1 if the stream's longest gap grew by more than `--gap-ms`, if the memory of the server and its
children grew by more than `--memory-mib`, if the JSON object did not come, or if the server did not
end in time.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import psutil
from grammar_attacks import GRAMMARS
from neighbours import URL, JsonClient, Neighbour

from server import Server, start_server

MIB = 2**20
SHUTDOWN_SECONDS = 20.0
"""The grace period of `start_server`, the time to send errors, and the end of the engine."""


@dataclass(frozen=True)
class Attack:
    """What one connection sends: `pieces(key)`, with a pause after each piece."""

    pieces: Callable[[str], Iterable[bytes]]
    num_connections: int = 1
    pause: float = 0.0


def head(*lines: str, start: str = f"POST {URL} HTTP/1.1") -> bytes:
    """The beginning of a request. Its headers go on until an empty line."""
    return "\r\n".join([start, "Host: 127.0.0.1", "Connection: close", *lines, ""]).encode()


def post(body: bytes, key: str) -> bytes:
    """A whole request with a valid key."""
    return head(f"Authorization: Bearer {key}", f"Content-Length: {len(body)}") + b"\r\n" + body


def posted(body: Callable[[], bytes], key: str) -> list[bytes]:
    return [post(body(), key)]


def chunked(key: str, *pieces: Iterable[bytes]) -> Iterator[bytes]:
    """A request with a chunked body, which `pieces` continue."""
    lines = (f"Authorization: Bearer {key}", "Transfer-Encoding: chunked")
    return chain([head(*lines) + b"\r\n"], *pieces)


ATTACKS = {
    "one_header": Attack(lambda _: chain([head() + b"X: "], repeat(b"a" * MIB, 79))),
    "many_headers": Attack(lambda _: chain([head()], repeat(b"X: y\r\n" * 10_000, 100))),
    "request_line": Attack(lambda _: chain([b"GET /"], repeat(b"a" * MIB, 79))),
    "trailers": Attack(
        lambda key: chunked(key, [b"1\r\n{\r\n0\r\n"], repeat(b"X: y\r\n" * 170_000, 200))
    ),
    "chunk_extensions": Attack(lambda key: chunked(key, [b"1;"], repeat(b"a" * MIB, 79))),
    "tiny_chunks": Attack(
        lambda key: chunked(key, repeat(b"1\r\n[\r\n" * 10_000, 60), [b"0\r\n\r\n"])
    ),
    "slow_headers": Attack(
        lambda _: chain([head()], repeat(b"X: y\r\n", 10_000)), num_connections=200, pause=0.5
    ),
    **{
        name: Attack(partial(posted, body), num_connections)
        for name, (body, num_connections) in GRAMMARS.items()
    },
    "deep_json": Attack(lambda key: [post(b'{"messages": ' + b"[" * 100_000, key)]),
}
"""The attacks by name. Whatever a client can send to harm others belongs here."""


# --- the attackers, in a process of their own ---


def attack_forever(name: str, port: int, key: str, statuses: "multiprocessing.Queue[str]") -> None:
    """Send an attack on all its connections, again and again. Report the status of each answer."""

    async def client(attack: Attack) -> None:
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                statuses.put(await send_attack(port, attack, key))
            await asyncio.sleep(0.05)

    async def clients(attack: Attack) -> None:
        await asyncio.gather(*(client(attack) for _ in range(attack.num_connections)))

    asyncio.run(clients(ATTACKS[name]))


async def send_attack(port: int, attack: Attack, key: str) -> str:
    """Send the pieces until the server answers or closes. Return the status of its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(reader.read())
    try:
        with suppress(ConnectionError):
            for piece in attack.pieces(key):
                if answer.done():
                    break
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(attack.pause)
        return (await answer)[9:12].decode() or "closed"
    except ConnectionError:
        return "reset"
    finally:
        answer.cancel()
        writer.transport.abort()  # what was not sent yet is dropped
        with suppress(OSError):
            await writer.wait_closed()


# --- the measurement ---


def memory_mib(server: Server) -> float:
    """The memory of the server and all its children."""
    total, process = 0, psutil.Process(server.process.pid)
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += each.memory_info().rss
    return total / MIB


def watch(
    server: Server, neighbour: Neighbour, json_thread: threading.Thread, seconds: float
) -> tuple[float, float]:
    """Wait that long, and for the thread. Return the peak memory and the longest gap meanwhile."""
    started, peak = time.monotonic(), 0.0
    while time.monotonic() < started + seconds or json_thread.is_alive():
        peak = max(peak, memory_mib(server))
        time.sleep(0.05)
    return peak, neighbour.longest_gap(started)


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one attack. Return its row of the report; its `problems` are empty if all is well."""
    flags = ["--max-model-len", "2048", "--kv-cache-size", "128MiB", *(arguments.serve or [])]
    server, keys = start_server(folder, arguments.model, flags)
    neighbour = Neighbour(server.port, keys["patient"])
    json_client = JsonClient(server.port, keys["patient"])
    context = multiprocessing.get_context("spawn")
    statuses: multiprocessing.Queue[str] = context.Queue()
    attacker = context.Process(
        target=attack_forever, args=(name, server.port, keys["eager"], statuses), daemon=True
    )
    try:
        json_client.start().join()  # the first one makes the tables of the tokens
        neighbour.start()
        usual_memory, usual_gap = watch(server, neighbour, json_client.start(), arguments.seconds)
        attacker.start()
        time.sleep(1.0)
        peak, gap = watch(server, neighbour, json_client.start(), arguments.seconds)
        neighbour.is_ending = True
        shutdown_seconds = end(server)
    finally:
        attacker.kill()
        server.process.kill()
    row = {
        "attack": name,
        "usual_gap_ms": round(usual_gap),
        "gap_ms": round(gap),
        "memory_growth_mib": round(peak - usual_memory),
        "json_object": json_client.status,
        "shutdown_seconds": round(shutdown_seconds, 1),
        "statuses": count(statuses),
    }
    return row | {"problems": neighbour.problems + problems_of(row, arguments)}


def end(server: Server) -> float:
    """Send SIGTERM. Return the seconds until the server has ended, or the limit."""
    started = time.monotonic()
    server.process.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(SHUTDOWN_SECONDS)
    return time.monotonic() - started


def count(statuses: "multiprocessing.Queue[str]") -> dict[str, int]:
    """How often each status was answered to the attackers."""
    counter: Counter[str] = Counter()
    while not statuses.empty():
        counter[statuses.get()] += 1
    return dict(counter)


def problems_of(row: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    """What is wrong with a row."""
    growth = row["gap_ms"] - row["usual_gap_ms"]
    checks = {
        f"the stream's longest gap grew by {growth} ms": growth <= arguments.gap_ms,
        "the memory grew too much": row["memory_growth_mib"] <= arguments.memory_mib,
        "no JSON object came": row["json_object"] == "200",
        "the server did not end in time": row["shutdown_seconds"] < SHUTDOWN_SECONDS,
    }
    return [problem for problem, is_fine in checks.items() if not is_fine]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=ATTACKS, help="run only this attack")
    parser.add_argument("--model", help="model to serve (default: the default model)")
    parser.add_argument("--seconds", type=float, default=8.0, help="time without and under attack")
    parser.add_argument("--gap-ms", type=float, default=250.0, help="growth that is allowed")
    parser.add_argument("--memory-mib", type=float, default=256.0, help="growth that is allowed")
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    parser.add_argument(
        "--serve", nargs=argparse.REMAINDER, help="pass all further flags to `stonechat serve`"
    )
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only or ATTACKS:
        with tempfile.TemporaryDirectory(prefix="stonechat-attack-") as folder:
            rows.append(measure(name, arguments, Path(folder)))
            print(" | ".join(f"{name}: {value}" for name, value in rows[-1].items()), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(row["problems"] for row in rows) else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
