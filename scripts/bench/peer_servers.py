"""Starts a server, waits until it is ready, reads how much memory it holds, and stops it."""

import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

START_TIMEOUT = 120.0
STONECHAT = "from stonechat_server.cli import main; raise SystemExit(main())"


@dataclass(frozen=True, slots=True)
class ServerKind:
    """A server to compare. `command` starts a `llama-server`, or has further options of ours."""

    name: str
    kind: Literal["ours", "peer"]
    command: tuple[str, ...] = ()

    def argv(self, model: Path, port: int, threads: int, slots: int, context: int) -> list[str]:
        """The command line that serves `model` to `slots` requests of `context` tokens each."""
        if self.kind == "ours":
            serve = [sys.executable, "-c", STONECHAT, "serve", str(model), "--port", str(port)]
            return [*serve, "--threads", str(threads), *self.command]
        fixed = ("--host", "127.0.0.1", "--port", str(port), "-m", str(model))
        sizes = ("-t", str(threads), "-np", str(slots), "-c", str(slots * context))
        return [*self.command[:1], *fixed, *sizes, *self.command[1:]]


@dataclass(slots=True)
class RunningServer:
    """A server that answers. `seconds` is the time from its start until it was ready."""

    process_id: int
    port: int
    seconds: float

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def resident_bytes(self) -> int:
        """Memory of the process and its children; a page that several share counts once."""
        return sum(proportional_bytes(pid) for pid in descendants(self.process_id))


def read_kind(kind: Literal["ours", "peer"], text: str) -> ServerKind:
    """The server of `NAME=COMMAND`. Raises ValueError if there is no `=`."""
    name, separator, command = text.partition("=")
    if not (name and separator):
        raise ValueError(f"NAME=… is expected, not {text!r}")
    return ServerKind(name, kind, tuple(shlex.split(command)))


@contextmanager
def started(kind: ServerKind, argv: Sequence[str], port: int, log: Path) -> Iterator[RunningServer]:
    """Run the server. Its output goes to `log`. Raises RuntimeError if it does not get ready."""
    with log.open("ab") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        path = "/ready" if kind.kind == "ours" else "/health"
        while not _answers(port, path):
            if process.poll() is not None or time.perf_counter() - begin > START_TIMEOUT:
                raise RuntimeError(f"{kind.name} did not start; its output is in {log}")
            time.sleep(0.01)
        yield RunningServer(process.pid, port, time.perf_counter() - begin)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def descendants(process_id: int) -> list[int]:
    """The process and all processes below it. Linux only."""
    found = [process_id]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def proportional_bytes(process_id: int) -> int:
    """Resident memory (PSS); pages that processes share are divided among them. Linux only."""
    for line in Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {process_id} has no figure of its memory")
