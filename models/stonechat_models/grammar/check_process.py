"""A process that checks grammars (see `check_worker`), and what its end means."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

from stonechat_models.errors import CostlyGrammarError, EngineDeadError, EngineError, GrammarError
from stonechat_models.grammar.check_worker import MEMORY_BYTES
from stonechat_models.types import GrammarSpec

PATIENCE_SECONDS = 30.0
"""The time that a check may take, the start of its process included, if processors are busy."""
EXIT_SECONDS = 1.0
"""The time that a process has to end after it has closed its output."""


class CheckProcess:
    """A process that runs `check_worker`. It starts when a check needs it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def check(self, spec: GrammarSpec, seconds: float) -> GrammarError | None:
        """Check a grammar within `seconds` of CPU time. Raises `EngineError` if it cannot."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(PATIENCE_SECONDS, _kill, [process])
        timer.start()
        try:
            task = {"kind": spec.kind, "source": spec.source, "seconds": seconds}
            process.stdin.write(json.dumps(task).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            timer.cancel()
        answer: dict[str, Any] = (
            json.loads(line) if line else {"error": None, "status": self._exit_status(process)}
        )
        if answer["status"] > 0:
            return CostlyGrammarError(_excess(answer["status"], seconds))
        if answer["status"] < 0:
            raise EngineError(answer["error"] or "the process that checks grammars has ended")
        return None if answer["error"] is None else GrammarError(answer["error"])

    def _exit_status(self, process: "subprocess.Popen[bytes]") -> int:
        """Reap a process that has stopped to answer. Return its signal, or -1 if it has failed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_SECONDS)
        self.end()
        return -process.returncode if process.returncode < 0 else -1

    def end(self) -> None:
        """End the process, if one runs. The next check starts another."""
        with self._lock:
            if self._process is not None:
                _kill(self._process)
                self._process.communicate()  # closes its pipes
            self._process = None

    def close(self) -> None:
        """End the process for good. Any thread may call this."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                _kill(self._process)
                self._process.wait()

    def _started(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._is_closed:
                raise EngineDeadError("no more grammars are checked")
            if self._process is not None and self._process.poll() is not None:
                self._process.communicate()  # closes its pipes
                self._process = None
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "stonechat_models.grammar.check_worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # a group of its own, which `_kill` ends
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                )
            return self._process


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process and its child. The group is its own as long as it has not been reaped."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)


def _excess(number: int, seconds: float) -> str:
    """The limit at which signal `number` ends a check. Raises `EngineError` if it is none."""
    match number:
        case signal.SIGPROF | signal.SIGKILL:
            return f"it takes too long to compile (the limit is {seconds:g} s)"
        case signal.SIGABRT:
            megabytes = MEMORY_BYTES // 2**20
            return f"it takes too much memory to compile (the limit is {megabytes} MiB)"
        case signal.SIGSEGV | signal.SIGBUS:
            return "it is nested too deeply"
    raise EngineError(f"a process that checks grammars was ended by signal {number}")
