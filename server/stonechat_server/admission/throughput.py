"""The throughput of the server, measured only while it has work."""

from collections import deque

WINDOW_SECONDS = 60.0


class ThroughputMeter:
    """Divides the expected tokens of finished requests by the busy seconds of the last minute."""

    def __init__(self) -> None:
        self._finished: deque[tuple[float, int]] = deque()
        self._num_tokens = 0
        self._busy_since: float | None = None

    def note_busy(self, now: float) -> None:
        """Note that there is work. If there was none before, the measurement begins."""
        if self._busy_since is None:
            self._busy_since = now

    def note_idle(self) -> None:
        """Note that no work is left. The next work is measured afresh."""
        self._busy_since = None
        self._finished.clear()
        self._num_tokens = 0

    def note_finished(self, num_tokens: int, now: float) -> None:
        """Count a finished request and its expected tokens."""
        self._finished.append((now, num_tokens))
        self._num_tokens += num_tokens
        self._forget(now)

    def tokens_per_second(self, now: float) -> float | None:
        """The throughput; None if no request has finished in this busy time or the last minute."""
        self._forget(now)
        if self._busy_since is None or not self._num_tokens:
            return None
        return self._num_tokens / max(now - max(self._busy_since, now - WINDOW_SECONDS), 0.001)

    def _forget(self, now: float) -> None:
        while self._finished and self._finished[0][0] < now - WINDOW_SECONDS:
            self._num_tokens -= self._finished.popleft()[1]
