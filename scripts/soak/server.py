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
    process.kill()
    raise RuntimeError(f"the server did not start: {(folder / 'server.log').read_text()}")


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
