"""Finds out which grammars of requests can be enforced, and remembers it."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from stonechat_models import CostlyGrammarError, GrammarError, GrammarSpec
from stonechat_server.errors import invalid

if TYPE_CHECKING:
    from stonechat_models import GrammarChecker

CHECKED_GRAMMARS = 1024

_Check = Future[GrammarError | None]


class GrammarPendingError(Exception):
    """The check of a grammar runs in another process. Try again once `check` is done.

    `drop` cancels the check unless it has begun: call it if nobody waits for it.
    """

    def __init__(self, check: _Check, drop: Callable[[], None] = lambda: None) -> None:
        super().__init__("a grammar is being checked")
        self.check = check
        self.drop = drop


class GrammarCache:
    """Checks grammars: the cheap ones at once, the others in processes with limits. Thread-safe.

    Its methods raise `GrammarPendingError` for a grammar that is being checked, and
    `TooManyChecksError` if it would be one too many.
    """

    def __init__(self) -> None:
        self._results: OrderedDict[bytes, GrammarError | None] = OrderedDict()
        self._running: dict[bytes, _Check] = {}
        self._checker: GrammarChecker | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def check(self, spec: GrammarSpec, param: str) -> None:
        """Check a grammar. Raises `APIError` 400 that names `param` and the reason."""
        try:
            reason = self.reason(spec)
        except CostlyGrammarError as error:
            reason = str(error)
        if reason is not None:
            message = f"This cannot be enforced: {reason}"
            raise invalid(param, message, code="invalid_grammar")

    def check_cost(self, spec: GrammarSpec, param: str) -> None:
        """Check a grammar whose parts have been checked. Only its cost can be wrong."""
        from stonechat_models import is_cheap

        if not is_cheap(spec):
            self.check(spec, param)

    def reason(self, spec: GrammarSpec) -> str | None:
        """Why a grammar cannot be enforced; None if it can.

        Raises `CostlyGrammarError` if the check went beyond a limit.
        """
        key = hashlib.blake2b(f"{spec.kind}\n{spec.source}".encode("utf-8", "replace")).digest()
        with self._lock:
            is_checked = key in self._results
            result = self._results.get(key)
        if not is_checked:
            result = self._examine(spec, key)
            self._remember(key, result)
        if isinstance(result, CostlyGrammarError):
            raise CostlyGrammarError(str(result))
        return None if result is None else str(result)

    def close(self) -> None:
        """End all checks, and start no more (blocking, but short)."""
        with self._lock:
            self._is_closed = True
            checker = self._checker
        if checker is not None:
            checker.close()

    def _examine(self, spec: GrammarSpec, key: bytes) -> GrammarError | None:
        from stonechat_models import check_grammar, is_cheap  # not needed at the start

        if is_cheap(spec):
            try:
                check_grammar(spec)
            except GrammarError as error:
                return error
            return None
        with self._lock:
            checker, check = self._processes(), self._running.get(key)
            is_new = check is None or check.cancelled()
            if check is None or is_new:
                check = self._running[key] = checker.submit(spec)
        if is_new:
            check.add_done_callback(lambda check: self._end(key, check))
        if not check.done():
            raise GrammarPendingError(check, lambda: checker.drop(spec))
        return check.result()

    def _end(self, key: bytes, check: _Check) -> None:
        """Keep the result of a check that is done, even if nobody waits for it any more."""
        with self._lock:
            if self._running.get(key) is check:
                del self._running[key]
        if not check.cancelled() and check.exception() is None:
            self._remember(key, check.result())

    def _remember(self, key: bytes, result: GrammarError | None) -> None:
        with self._lock:
            self._results[key] = result
            if len(self._results) > CHECKED_GRAMMARS:
                self._results.popitem(last=False)

    def _processes(self) -> "GrammarChecker":
        if self._checker is None:
            from stonechat_models import GrammarChecker

            self._checker = GrammarChecker()
            if self._is_closed:
                self._checker.close()
        return self._checker
