"""Checks grammars in processes of their own, which limits end: no grammar can hold up a server.

A small grammar is checked in one process with little time. What takes longer there is checked again
in another process, together with the large ones, so that quick checks do not wait for slow ones.
Both processes start with the first check that needs them.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from stonechat_models.child_process import ChildProcess
from stonechat_models.errors import (
    CostlyGrammarError,
    EngineDeadError,
    EngineError,
    GrammarError,
    TooManyChecksError,
)
from stonechat_models.grammar.check_process import ask
from stonechat_models.types import GrammarSpec

logger = logging.getLogger(__name__)

SMALL_CHARS = 16 * 1024
QUICK_SECONDS = 0.1
MAX_SECONDS = 3.0
"""CPU time of one check."""
IDLE_SECONDS = 300.0
"""After this long without a check, a process ends. The next check starts another."""
MAX_CHECKS = 64
"""Checks that wait or run."""

Check = Future[GrammarError | None]
"""The error of a grammar, or None. Raises `EngineError` if the check itself fails."""


class GrammarChecker:
    """Finds out whether grammars can be compiled. Thread-safe. `close` ends the processes."""

    def __init__(
        self, quick_seconds: float = QUICK_SECONDS, max_seconds: float = MAX_SECONDS
    ) -> None:
        self._slow = _Lane(max_seconds, self._finish)
        self._quick = _Lane(quick_seconds, self._finish, retry=self._retry)
        self._running: dict[GrammarSpec, Check] = {}
        self._unneeded: set[GrammarSpec] = set()  # of those that run
        self._is_closed = False
        self._lock = threading.Lock()

    def submit(self, spec: GrammarSpec) -> Check:
        """Check a grammar later. Two checks of one grammar at a time are one.

        Raises `TooManyChecksError` if `MAX_CHECKS` others wait or run. Only `drop` may cancel it.
        """
        with self._lock:
            if self._is_closed:
                raise EngineDeadError("no more grammars are checked")
            self._unneeded.discard(spec)
            if spec not in self._running:
                if len(self._running) >= MAX_CHECKS:
                    raise TooManyChecksError("too many grammars are being checked")
                self._running[spec] = Future()
                (self._quick if len(spec.source) <= SMALL_CHARS else self._slow).put(spec)
            return self._running[spec]

    def drop(self, spec: GrammarSpec) -> None:
        """Cancel the check of a grammar that nobody needs. One that has begun has no second try."""
        with self._lock:
            is_waiting = self._quick.remove(spec) or self._slow.remove(spec)
            check = self._running.pop(spec, None) if is_waiting else None
            if spec in self._running:
                self._unneeded.add(spec)
        if check is not None:
            check.cancel()

    def close(self) -> None:
        """End all checks at once. Those that wait or run raise `EngineDeadError`."""
        with self._lock:
            self._is_closed = True
            checks, self._running = list(self._running.values()), {}
        self._quick.close()
        self._slow.close()
        for check in checks:
            check.set_exception(EngineDeadError("no more grammars are checked"))

    def _retry(self, spec: GrammarSpec) -> None:
        """Check a grammar again, with more time."""
        with self._lock:
            is_needed = spec in self._running and spec not in self._unneeded
            check = None if is_needed else self._running.pop(spec, None)
            self._unneeded.discard(spec)
            if is_needed:
                self._slow.put(spec)
        if check is not None:
            check.cancel()

    def _finish(self, spec: GrammarSpec, result: GrammarError | EngineError | None) -> None:
        with self._lock:
            check = self._running.pop(spec, None)
            self._unneeded.discard(spec)
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
        self._process = ChildProcess("stonechat_models.grammar.check_worker")
        self._waiting: dict[GrammarSpec, None] = {}  # in their order
        self._is_started = self._is_closed = False
        self._changed = threading.Condition()

    def put(self, spec: GrammarSpec) -> None:
        """Queue a grammar. The first one starts the thread."""
        with self._changed:
            self._waiting[spec] = None
            self._changed.notify()
            if not self._is_started:
                self._is_started = True
                threading.Thread(
                    target=self._main, name="stonechat-grammar-check", daemon=True
                ).start()

    def remove(self, spec: GrammarSpec) -> bool:
        """Remove a grammar from the queue. Return False if it is not there."""
        with self._changed:
            is_waiting = spec in self._waiting
            self._waiting.pop(spec, None)
            return is_waiting

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify()
        self._process.close()

    def _next(self) -> GrammarSpec | None:
        """Wait for the next grammar. Return None once the lane is closed or has long been idle."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed, IDLE_SECONDS)
            if not self._waiting:
                return None
            spec = next(iter(self._waiting))
            del self._waiting[spec]
            return spec

    def _main(self) -> None:
        while True:
            spec = self._next()
            if spec is None:
                self._process.end()
                if self._is_closed:
                    return
                continue
            try:
                result: GrammarError | EngineError | None = ask(self._process, spec, self._seconds)
            except EngineDeadError as error:
                result = error
            except Exception as error:
                logger.exception("a grammar cannot be checked")
                result = EngineError(f"a grammar cannot be checked: {error}")
            if isinstance(result, CostlyGrammarError) and self._retry is not None:
                self._retry(spec)
            else:
                self._finish(spec, result)
