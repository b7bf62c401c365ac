"""Starts servers, waits until they are ready, reads how much memory they hold, and stops them."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import psutil

START_TIMEOUT = 180.0
STOP_TIMEOUT = 120.0
STONECHAT = (sys.executable, "-m", "stonechat_server.cli")


@dataclass(slots=True)
class RunningServer:
    """A server that answers. `seconds` is the time from its start until it was ready."""

    process_id: int
    port: int
    seconds: float

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    def processes(self) -> list[psutil.Process]:
        """The server's process and all below it."""
        first = psutil.Process(self.process_id)
        return [first, *first.children(recursive=True)]

    def resident_bytes(self) -> int:
        """Memory (PSS) of these processes; a page that several share counts once. Linux only."""
        return sum(process.memory_full_info().pss for process in self.processes())


def stonechat(
    *words: str, log: Path | None = None, **variables: str
) -> AbstractContextManager[RunningServer]:
    """Run `stonechat WORDS`, which serves, on a free port. `variables` go to its environment."""
    port = free_port()
    return started([*STONECHAT, *words, "--port", str(port)], port, log=log, variables=variables)


@contextmanager
def started(
    argv: Sequence[str],
    port: int,
    *,
    path: str = "/ready",
    log: Path | None = None,
    variables: dict[str, str] | None = None,
) -> Iterator[RunningServer]:
    """Run a server, and wait until it answers `path` with 200. Its output goes to `log`, or stderr.

    Raises RuntimeError if it does not get ready.
    """
    begin = time.perf_counter()
    with nullcontext(sys.stderr) if log is None else log.open("a") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | (variables or {}),
            start_new_session=True,
        )
    try:
        while not _answers(port, path):
            if process.poll() is not None or time.perf_counter() - begin > START_TIMEOUT:
                where = f"; its output is in {log}" if log else ""
                raise RuntimeError(f"{' '.join(argv)} did not start{where}")
            time.sleep(0.01)
        yield RunningServer(process.pid, port, time.perf_counter() - begin)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
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
