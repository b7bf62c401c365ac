"""How fast work gets done, measured only while there is some."""

from collections import deque

WINDOW_SECONDS = 60.0


class ThroughputMeter:
    """Expected tokens of the requests that finish, over the busy seconds of the last minute."""

    def __init__(self) -> None:
        self._finished: deque[tuple[float, int]] = deque()
        self._num_tokens = 0
        self._busy_since: float | None = None

    def note_busy(self, now: float) -> None:
        """There is work; if there was none before, the count begins."""
        if self._busy_since is None:
            self._busy_since = now

    def note_idle(self) -> None:
        """There is no work left; the next load has to show its own pace."""
        self._busy_since = None
        self._finished.clear()
        self._num_tokens = 0

    def note_finished(self, num_tokens: int, now: float) -> None:
        """A request is done."""
        self._finished.append((now, num_tokens))
        self._num_tokens += num_tokens
        self._forget(now)

    def tokens_per_second(self, now: float) -> float | None:
        """None: nothing has finished yet in this busy time, or in the last minute."""
        self._forget(now)
        if self._busy_since is None or not self._num_tokens:
            return None
        return self._num_tokens / max(now - max(self._busy_since, now - WINDOW_SECONDS), 0.001)

    def _forget(self, now: float) -> None:
        while self._finished and self._finished[0][0] < now - WINDOW_SECONDS:
            self._num_tokens -= self._finished.popleft()[1]
