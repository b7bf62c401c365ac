"""Checks grammars in processes of their own, which limits end: no grammar can hold up a server.

A small grammar is checked in one process with little time. What takes longer there is checked again
in another process, together with the large ones, so that quick checks do not wait for slow ones.
Both processes start with the first check that needs them.
"""

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future

from stonechat_models.errors import CostlyGrammarError, EngineDeadError, EngineError, GrammarError
from stonechat_models.grammar.check_worker import MEMORY_BYTES
from stonechat_models.types import GrammarSpec

logger = logging.getLogger(__name__)

SMALL_CHARS = 16 * 1024
QUICK_SECONDS = 0.1
MAX_SECONDS = 3.0
"""CPU time of one check."""
PATIENCE_SECONDS = 30.0
"""The time that a check may take, the start of its process included, if processors are busy."""
IDLE_SECONDS = 300.0
"""After this long without a check, a process ends. The next check starts another."""

Check = Future[GrammarError | None]
"""The error of a grammar, or None. Raises `EngineError` if the check itself fails."""


class GrammarChecker:
    """Finds out whether grammars can be compiled. Thread-safe. `close` ends the processes."""

    def __init__(
        self, quick_seconds: float = QUICK_SECONDS, max_seconds: float = MAX_SECONDS
    ) -> None:
        self._slow = _Lane(max_seconds, self._finish)
        self._quick = _Lane(quick_seconds, self._finish, retry=self._slow.put)
        self._running: dict[GrammarSpec, Check] = {}
        self._is_closed = False
        self._lock = threading.Lock()

    def submit(self, spec: GrammarSpec) -> Check:
        """Check a grammar later. Two checks of one grammar at a time are one. Never cancel it."""
        with self._lock:
            if self._is_closed:
                raise EngineDeadError("no more grammars are checked")
            if spec not in self._running:
                self._running[spec] = Future()
                (self._quick if len(spec.source) <= SMALL_CHARS else self._slow).put(spec)
            return self._running[spec]

    def close(self) -> None:
        """End all checks at once. Those that wait or run raise `EngineDeadError`."""
        with self._lock:
            self._is_closed = True
            checks, self._running = list(self._running.values()), {}
        self._quick.close()
        self._slow.close()
        for check in checks:
            check.set_exception(EngineDeadError("no more grammars are checked"))

    def _finish(self, spec: GrammarSpec, result: GrammarError | EngineError | None) -> None:
        with self._lock:
            check = self._running.pop(spec, None)
        if check is None:  # closed meanwhile
            return
        if result is None or isinstance(result, GrammarError):
            check.set_result(result)
        else:
            check.set_exception(result)


class _Lane:
    """Checks one grammar after the other, in a thread with a process. `retry` gets costly ones."""

    def __init__(
        self,
        seconds: float,
        finish: Callable[[GrammarSpec, GrammarError | EngineError | None], None],
        retry: Callable[[GrammarSpec], None] | None = None,
    ) -> None:
        self._seconds = seconds
        self._finish = finish
        self._retry = retry
        self._process = _CheckProcess()
        self._tasks: queue.SimpleQueue[GrammarSpec | None] = queue.SimpleQueue()
        self._is_started = False
        self._lock = threading.Lock()

    def put(self, spec: GrammarSpec) -> None:
        """Queue a grammar. The first one starts the thread."""
        self._tasks.put(spec)
        with self._lock:
            if not self._is_started:
                self._is_started = True
                threading.Thread(
                    target=self._main, name="stonechat-grammar-check", daemon=True
                ).start()

    def close(self) -> None:
        self._tasks.put(None)
        self._process.close()

    def _main(self) -> None:
        while True:
            try:
                spec = self._tasks.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                self._process.end()
                continue
            if spec is None:
                self._process.end()
                return
            try:
                result: GrammarError | EngineError | None = self._process.check(spec, self._seconds)
            except EngineDeadError as error:
                result = error
            except Exception as error:
                logger.exception("a grammar cannot be checked")
                result = EngineError(f"a grammar cannot be checked: {error}")
            if isinstance(result, CostlyGrammarError) and self._retry is not None:
                self._retry(spec)
            else:
                self._finish(spec, result)


class _CheckProcess:
    """A process that runs `check_worker`. It starts when a check needs it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def check(self, spec: GrammarSpec, seconds: float) -> GrammarError | None:
        """Check a grammar within `seconds` of CPU time. Raises `EngineError`."""
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
        if not line:
            self.end()
        answer = json.loads(line) if line else {"status": signal.SIGKILL}
        if answer["status"]:
            return CostlyGrammarError(_excess(answer["status"], seconds))
        return None if answer["error"] is None else GrammarError(answer["error"])

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
