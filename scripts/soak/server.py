"""Starts `stonechat serve` for `soak.py` and `fairness.py`, and reads its resources."""

import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
STONECHAT = [sys.executable, "-m", "stonechat_server.cli"]
START_SECONDS = 180.0


@dataclass
class Server:
    """A `stonechat serve` that this process started."""

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
        """Return the resources in use. Counts must come back exactly, memory within a bound."""
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
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def new_keys(folder: Path) -> dict[str, str]:
    """Make keys with different limits in `keys.toml`. Return them by their names."""
    limits = {
        "patient": [],
        "eager": ["--max-concurrency", "8"],
        "flood": ["--requests-per-minute", "240"],
    }
    add = [*STONECHAT, "keys", "--keys-file", str(folder / "keys.toml"), "add"]
    return {
        name: subprocess.run(
            [*add, name, *flags], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name, flags in limits.items()
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, port: int, *words: str) -> subprocess.Popen[bytes]:
    """Run `stonechat WORDS` until it is ready on the port, with the keys and a ledger of `folder`.

    Its output goes to `server.log` there. Raises `RuntimeError` if it does not start.
    """
    command = [*STONECHAT, *words, "--port", str(port), "--served-model-name", "soak"]
    command += ["--keys-file", str(folder / "keys.toml"), "--ledger", ledger_url(folder)]
    command += ["--ledger-journal", str(folder / "journal")]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            fetch(port, "/ready")
            return process
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise RuntimeError(f"the server did not start: {log.read_text()}")


def start_server(
    folder: Path, model: str | None, extra: list[str]
) -> tuple[Server, dict[str, str]]:
    keys, port = new_keys(folder), free_port()
    flags = ["--max-num-seqs", "16", "--max-queued-requests", "24", "--max-body-size", "512KiB"]
    flags += ["--kv-cache-size", "12MiB", "--max-model-len", "512", "--shutdown-grace", "2"]
    process = start(folder, port, "serve", *([model] if model else []), *flags, *extra)
    return Server(process, port, folder), keys


def ledger_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'usage.db'}"


def wait_for_idle(
    server: Server, before: dict[str, float], seconds: float = 60.0
) -> dict[str, float]:
    """Wait until no count exceeds `before`, or time is up. Return the resources in use."""
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
