"""An event loop with a clock of its own, so that waits take no time and end in a certain order.

For code that runs in one event loop, without sockets and without threads of its own: on a busy
machine, two waits of real time that are close to each other may end in any order.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Adds to `waited` what it was to wait, and does not."""

    waited = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:  # nothing is due: only another thread can go on
            return super().select(None)
        ready = super().select(0)
        if not ready:
            self.waited += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its clock hardly goes while there is work, and then jumps to the next timer."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        self._clock.waited += 1e-9  # or code that waits for less would wait for ever
        return self._clock.waited


def run(work: Coroutine[Any, Any, T]) -> T:
    """What `asyncio.run` does, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
