"""Admission control: decides which request runs now, which waits and which is refused.

A refusal states in `Retry-After` when the client may try again. Everything here runs on the event
loop, so nothing needs a lock.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable

from stonechat_server.access.auth import is_rate_limited
from stonechat_server.access.keys import BATCH_PRIORITY, ApiKey
from stonechat_server.admission.fair_queue import Admission, Cost, FairQueue
from stonechat_server.admission.limits import AdmissionLimits
from stonechat_server.admission.rate_limits import RateLimiter
from stonechat_server.admission.refusals import RefusedError, timed_out, too_many_requests

WINDOW_SECONDS = 60.0
"""Throughput is measured over this time."""
MAX_RETRY_AFTER_SECONDS = 600.0
RETRY_AFTER_WITHOUT_THROUGHPUT = 5.0
SMALLEST_COST = Cost(0, 0)


class Tenants:
    """What the limits of keys count, over all models of a server."""

    def __init__(self, rate_limiter: RateLimiter | None = None) -> None:
        self.rate_limiter = rate_limiter or RateLimiter()
        self.num_running: Counter[str] = Counter()
        """Requests that run, by tenant."""
        self.controls: list[AdmissionControl] = []


class AdmissionControl:
    """Grants slots to requests, fairly between tenants; see `slot`.

    With several models, each has one. They share the `tenants`.
    """

    def __init__(
        self,
        limits: AdmissionLimits,
        rate_limiter: RateLimiter | None = None,
        clock: Callable[[], float] = time.monotonic,
        tenants: Tenants | None = None,
    ) -> None:
        self._tenants = tenants or Tenants(rate_limiter or RateLimiter(clock))
        self._tenants.controls.append(self)
        self.limits = limits
        self.rate_limiter = self._tenants.rate_limiter
        self.num_running = 0
        self.num_running_sequences = 0
        self.num_running_tokens = 0
        self._batch_sequences = 0
        self._batch_tokens = 0
        """Of the running ones, those of batches: the engine preempts them for other requests."""
        self._clock = clock
        self._queue = FairQueue(limits.max_queued_requests, limits.max_queued_tokens)
        self._running_of_tenant = self._tenants.num_running
        self._throughput = _ThroughputMeter()

    @property
    def num_queued(self) -> int:
        """Requests that wait for a slot."""
        return self._queue.num_waiters

    @property
    def num_queued_tokens(self) -> int:
        """Expected tokens of the requests that wait."""
        return self._queue.num_tokens

    async def admit(
        self, key: ApiKey, cost: Cost, *, tenant: str, queue_timeout: float | None = None
    ) -> Admission:
        """Wait in the queue for a place among the running requests. `leave` gives it back.

        Fairness is kept between tenants. Raises `RefusedError`: 429 for a rate limit or a full
        queue, 504 after `queue_timeout` seconds in the queue.
        """
        if is_rate_limited(key):
            self.rate_limiter.charge(key, cost.tokens)
        admission = Admission(key, tenant, cost)
        self._throughput.note_busy(self._clock())
        if not self._queue.num_waiters and self._may_run(admission):
            self._queue.serve_at_once(admission)
            self._count(admission, 1)
            return admission
        try:
            await self._wait(admission, queue_timeout)
        except BaseException:
            if is_rate_limited(key):
                self.rate_limiter.settle(key, cost.tokens, 0)
            raise
        return admission

    def leave(self, admission: Admission) -> None:
        """Give the place back, and settle the expected tokens against the used ones."""
        num_expected, num_used = admission.cost.tokens, admission.num_used_tokens
        self._count(admission, -1)
        self._queue.charge(admission.tenant, num_used - num_expected)
        if is_rate_limited(admission.key):
            self.rate_limiter.settle(admission.key, num_expected, num_used)
        self._throughput.note_finished(num_expected, self._clock())
        self._dispatch_or_note_idle()
        if admission.key.max_concurrency is not None:
            self._dispatch_elsewhere()

    def refuse_early(self, key: ApiKey, tenant: str) -> None:
        """Raise what `admit` would raise for the smallest request, before work is spent on one.

        A flood is then refused for little more than the reading of its headers.
        """
        if is_rate_limited(key):
            self.rate_limiter.check(key)
        if self._queue.num_waiters and self._queue.peek(self._below_concurrency) is not None:
            self._evicted_for(Admission(key, tenant, SMALLEST_COST))

    def retry_after(self) -> float:
        """Seconds until, at the recent throughput, everything that waits now has been served."""
        throughput = self._throughput.tokens_per_second(self._clock())
        if throughput is None:
            return RETRY_AFTER_WITHOUT_THROUGHPUT
        return min(self._queue.num_tokens / throughput, MAX_RETRY_AFTER_SECONDS)

    async def _wait(self, admission: Admission, timeout: float | None) -> None:
        granted = admission.granted = asyncio.get_running_loop().create_future()
        self._make_room(admission)
        self._queue.push(admission)
        self._dispatch()
        try:
            async with asyncio.timeout(timeout):  # `wait_for` loses a cancellation beside the grant
                await asyncio.shield(granted)
        except BaseException as error:
            self._withdraw(admission)
            if isinstance(error, TimeoutError):
                message = f"The request waited {timeout:g} s in the queue without being started."
                raise timed_out(message, reason="queue_timeout") from None
            raise

    def _make_room(self, newcomer: Admission) -> None:
        """Evict waiters until the newcomer fits, or refuse it."""
        if self._queue.peek(self._below_concurrency) is None and self._may_run(newcomer):
            return
        while (evicted := self._evicted_for(newcomer)) is not None:
            self._queue.remove(evicted)
            assert evicted.granted is not None
            evicted.granted.set_exception(self._queue_full())

    def _evicted_for(self, newcomer: Admission) -> Admission | None:
        """The waiter to evict so that the newcomer fits; None if it fits.

        Raises `RefusedError` 429 if the newcomer itself must go.
        """
        if self._queue.has_room(newcomer.cost):
            return None
        evicted = self._queue.evicted_for(newcomer.tenant, newcomer.key.priority)
        if evicted is None:
            raise self._queue_full()
        return evicted

    def _queue_full(self) -> RefusedError:
        return too_many_requests(
            f"The queue is full: {self._queue.num_waiters} requests with "
            f"{self._queue.num_tokens} tokens wait. Try again later.",
            reason="queue_full",
            retry_after=self.retry_after(),
        )

    def _below_concurrency(self, waiter: Admission) -> bool:
        limit = waiter.key.max_concurrency
        return limit is None or self._running_of_tenant[waiter.tenant] < limit

    def _may_run(self, waiter: Admission) -> bool:
        if waiter.key.max_concurrency is not None and not self._below_concurrency(waiter):
            return False
        num_sequences = self.num_running_sequences + waiter.cost.num_sequences
        num_tokens = self.num_running_tokens + waiter.cost.running_tokens
        if waiter.key.priority < BATCH_PRIORITY:
            num_sequences -= self._batch_sequences
            num_tokens -= self._batch_tokens
        return self.num_running == 0 or (
            num_sequences <= self.limits.max_running_sequences
            and num_tokens <= self.limits.max_running_tokens
        )

    def _dispatch(self) -> None:
        """Grant slots in the queue's order. If the next waiter does not fit, the rest wait too."""
        while (waiter := self._queue.peek(self._below_concurrency)) is not None:
            if not self._may_run(waiter):
                return
            self._queue.serve(waiter)
            self._count(waiter, 1)
            assert waiter.granted is not None
            waiter.granted.set_result(None)

    def _withdraw(self, waiter: Admission) -> None:
        """Undo `_wait` for a waiter that was evicted, timed out or cancelled."""
        granted = waiter.granted
        assert granted is not None
        if not granted.done():
            self._queue.remove(waiter)
            granted.cancel()
        elif granted.exception() is None:
            self._count(waiter, -1)
            self._queue.charge(waiter.tenant, -waiter.cost.tokens)
            if waiter.key.max_concurrency is not None:
                self._dispatch_elsewhere()
        self._dispatch_or_note_idle()

    def _dispatch_elsewhere(self) -> None:
        """Let requests run that waited for those of their key in the queues of other models."""
        for control in self._tenants.controls:
            if control is not self:
                control._dispatch()

    def _dispatch_or_note_idle(self) -> None:
        if self._queue.num_waiters:
            self._dispatch()
        elif not self.num_running:
            self._throughput.note_idle()

    def _count(self, admission: Admission, sign: int) -> None:
        tenant, cost = admission.tenant, admission.cost
        self.num_running += sign
        self.num_running_sequences += sign * cost.num_sequences
        self.num_running_tokens += sign * cost.running_tokens
        if admission.key.priority >= BATCH_PRIORITY:
            self._batch_sequences += sign * cost.num_sequences
            self._batch_tokens += sign * cost.running_tokens
        self._running_of_tenant[tenant] += sign
        if not self._running_of_tenant[tenant]:
            del self._running_of_tenant[tenant]


class _ThroughputMeter:
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
