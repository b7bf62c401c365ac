"""Processes that work on one task after the other, so that limits can end them.

Tasks and answers are bytes, length-prefixed, over the standard input and output of the process. It
runs a module of this package, which calls `serve_tasks`.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO

EXIT_SECONDS = 1.0
"""The time that a process has to end after it has closed its output."""
LENGTH_BYTES = 8


class ChildEndedError(Exception):
    """The process has ended before it answered. `signal` ended it; 0: it has failed by itself.

    `is_late`: the patience of the one who asked was over.
    """

    def __init__(self, signal: int, *, is_late: bool = False) -> None:
        super().__init__(f"the process was ended by signal {signal}" if signal else "it has failed")
        self.signal = signal
        self.is_late = is_late


class ChildClosedError(Exception):
    """The process has been ended for good."""


class ChildProcess:
    """A process that runs a module with arguments. It starts when a task needs it."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module_and_arguments = (module, *arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def ask(self, task: bytes, patience: float) -> bytes:
        """Return the answer to a task. Only one thread may ask at a time.

        The process is killed after `patience` seconds, its start included. Raises
        `ChildEndedError` if it ends first, and `ChildClosedError` after `close`.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()
        timer = threading.Timer(patience, _end_late, [process, late])
        timer.daemon = True
        timer.start()
        try:
            _write(process.stdin, task)
            answer = _read(process.stdout)
        except BrokenPipeError:
            answer = None
        finally:
            timer.cancel()
        if answer is None:
            raise ChildEndedError(self._exit_signal(process), is_late=late.is_set())
        return answer

    def end(self) -> None:
        """End the process, if one runs. The next task starts another."""
        with self._lock:
            if self._process is not None:
                _kill(self._process)
                _reap(self._process)
            self._process = None

    def close(self) -> None:
        """End the process for good. Any thread may call this."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                _kill(self._process)
                self._process.wait()

    def _exit_signal(self, process: "subprocess.Popen[bytes]") -> int:
        """Reap a process that has stopped to answer. Return its signal, or 0."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_SECONDS)
        self.end()
        return max(0, -process.returncode)

    def _started(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._is_closed:
                raise ChildClosedError
            if self._process is not None and self._process.poll() is not None:
                _reap(self._process)
                self._process = None
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", *self._module_and_arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # a group of its own, which `_kill` ends
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                )
            return self._process


def serve_tasks(answer: Callable[[bytes], bytes]) -> None:
    """Answer the tasks of a `ChildProcess` until the input ends. Call it in that process.

    What else is printed is lost, so that it cannot stand between the answers.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the server, which ends this process
        signal.signal(number, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "wb") as answers, open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
        while (task := _read(sys.stdin.buffer)) is not None:
            _write(answers, answer(task))


def limit(kind: int, value: int) -> None:
    """Set a soft limit of this process, such as `resource.RLIMIT_CORE`."""
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def limit_growth(num_bytes: int) -> None:
    """Limit what this process may add to its address space, where its size can be read."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
        limit(resource.RLIMIT_AS, size + num_bytes)


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(len(data).to_bytes(LENGTH_BYTES, "little"))
    file.write(data)
    file.flush()


def _read(file: IO[bytes]) -> bytes | None:
    """Return the next message; None if the other end has closed before it was complete."""
    length = int.from_bytes(prefix := file.read(LENGTH_BYTES), "little")
    data = file.read(length) if len(prefix) == LENGTH_BYTES else b""
    return data if len(prefix) == LENGTH_BYTES and len(data) == length else None


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process and its children. The group is its own until it has been reaped."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)


def _end_late(process: "subprocess.Popen[bytes]", late: threading.Event) -> None:
    late.set()
    _kill(process)


def _reap(process: "subprocess.Popen[bytes]") -> None:
    process.communicate()  # closes its pipes
