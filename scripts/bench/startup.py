"""Measure how a server on the CPU starts: seconds until it is ready, and its resident memory.

    PYTHONPATH=server:models python scripts/bench/startup.py model.gguf --repeats 3

Prints a table with the command's time to the first answer of /health, to the first token, and the
resident memory of all its processes: after the start, and after 8 requests at once. The files
should be in the system's cache; the first start of a file, which converts its tokenizer, is not
counted. Linux only: memory is read from /proc.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

import httpx
from servers import free_port, started

PROMPT = "Tell a story about a river and a mountain."


@dataclass(frozen=True, slots=True)
class Startup:
    """What one start took."""

    ready_seconds: float
    token_seconds: float
    cpu_seconds: float
    """Of all processes until the first token."""
    resident: int
    """Proportional bytes (PSS) of all processes after the first token."""
    busy_resident: int
    """The same after 8 requests at once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="+", help="GGUF files, or other names of models")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", default=sys.executable)
    arguments = parser.parse_args()
    print("| model | file, MB | ready, s | first token, s | CPU, s | resident, MB | after 8 |")
    print("|---|---|---|---|---|---|---|")
    for model in arguments.models:
        starts = [measure(model, arguments.python) for _ in range(arguments.repeats + 1)][1:]
        seconds = [f"{median(column):.2f}" for column in list(zip(*map(astuple, starts)))[:3]]
        sizes = [f"{max(column) / 1e6:.0f}" for column in list(zip(*map(astuple, starts)))[3:]]
        size = Path(model).stat().st_size / 1e6 if Path(model).is_file() else 0
        print("|", " | ".join([Path(model).stem, f"{size:.0f}", *seconds, *sizes]), "|", flush=True)


def measure(model: str, python: str) -> Startup:
    """Start a server, send it requests, and stop it."""
    port = free_port()
    words = [python, "-m", "stonechat_server.cli", "serve", model, "--port", str(port)]
    words += ["--ledger", "off", "--log-level", "warning"]
    began = time.perf_counter()
    with started(words, port, path="/health") as server:
        url = server.address
        chat(url, num_tokens=1)
        token = time.perf_counter() - began
        times = [process.cpu_times() for process in server.processes()]
        cpu = sum(own.user + own.system for own in times)
        resident = server.resident_bytes()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: chat(url, num_tokens=64), range(8)))
        return Startup(server.seconds, token, cpu, resident, server.resident_bytes())


def chat(url: str, num_tokens: int) -> None:
    message = {"role": "user", "content": PROMPT}
    body = {"messages": [message], "max_tokens": num_tokens, "ignore_eos": True}
    httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).raise_for_status()


if __name__ == "__main__":
    main()
