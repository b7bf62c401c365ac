"""Admission control: decides which request runs now, which waits and which is refused.

A refusal states in `Retry-After` when the client may try again. Everything here runs on the event
loop, so nothing needs a lock.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from stonechat_server.access.keys import ApiKey
from stonechat_server.admission.fair_queue import Cost, FairQueue, Waiter
from stonechat_server.admission.rate_limits import RateLimiter
from stonechat_server.admission.refusals import RefusedError, timed_out, too_many_requests
from stonechat_server.admission.throughput import ThroughputMeter

MAX_RETRY_AFTER_SECONDS = 600.0
RETRY_AFTER_WITHOUT_THROUGHPUT = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """Bounds on the requests that run in the engine and on those that wait for it."""

    max_running_sequences: int
    max_running_tokens: int
    max_queued_requests: int
    max_queued_tokens: int


@dataclass(slots=True)
class Slot:
    """A place among the running requests."""

    key: ApiKey
    tenant: str
    cost: Cost
    queue_seconds: float = 0.0
    used_tokens: int = 0
    """Prompt and completion tokens that were used. The holder of the slot sets it."""


class AdmissionControl:
    """Grants slots to requests, fairly between tenants; see `slot`."""

    def __init__(
        self,
        limits: AdmissionLimits,
        rate_limiter: RateLimiter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.rate_limiter = rate_limiter or RateLimiter(clock)
        self.num_running = 0
        self.num_running_sequences = 0
        self.num_running_tokens = 0
        self._clock = clock
        self._queue = FairQueue(limits.max_queued_requests, limits.max_queued_tokens)
        self._running_of_tenant: Counter[str] = Counter()
        self._throughput = ThroughputMeter()

    @property
    def num_queued(self) -> int:
        """Requests that wait for a slot."""
        return len(self._queue)

    @property
    def num_queued_tokens(self) -> int:
        """Expected tokens of the requests that wait."""
        return self._queue.num_tokens

    @asynccontextmanager
    async def slot(
        self,
        key: ApiKey,
        cost: Cost,
        *,
        tenant: str | None = None,
        queue_timeout: float | None = None,
    ) -> AsyncIterator[Slot]:
        """Wait in the queue for a slot and hold it during the body of the `async with`.

        The queue is fair between tenants; by default each key is a tenant. Raises `RefusedError`:
        429 for a rate limit or a full queue, 504 after `queue_timeout` seconds in the queue.
        """
        slot = Slot(key, f"key:{key.name}" if tenant is None else tenant, cost)
        self.rate_limiter.charge(key, cost.tokens)
        arrival = self._clock()
        try:
            await self._enter(slot, arrival, queue_timeout)
        except BaseException:
            self.rate_limiter.settle(key, cost.tokens, 0)
            raise
        slot.queue_seconds = self._clock() - arrival
        try:
            yield slot
        finally:
            self._leave(slot)

    def refuse_early(self, key: ApiKey, tenant: str) -> None:
        """Raise the error that `slot` would raise for even the smallest request.

        The caller checks this before any other work. Refusing a flood then costs little more than
        reading its headers.
        """
        self.rate_limiter.check(key)
        queue = self._queue
        if len(queue) < queue.max_requests or queue.peek(self._below_concurrency) is None:
            return
        if queue.evicted_for(tenant, key.priority) is None:
            raise self._queue_full()

    def retry_after(self) -> float:
        """Seconds until all requests that wait now are served, at the recent throughput."""
        throughput = self._throughput.tokens_per_second(self._clock())
        if throughput is None:
            return RETRY_AFTER_WITHOUT_THROUGHPUT
        return min(self._queue.num_tokens / throughput, MAX_RETRY_AFTER_SECONDS)

    async def _enter(self, slot: Slot, arrival: float, timeout: float | None) -> None:
        granted = asyncio.get_running_loop().create_future()
        key = slot.key
        waiter = Waiter(slot.tenant, key.priority, slot.cost, granted, key.max_concurrency)
        self._throughput.note_busy(arrival)
        self._make_room(waiter)
        self._queue.push(waiter)
        self._dispatch()
        try:
            await asyncio.wait_for(asyncio.shield(granted), timeout)
        except BaseException as error:
            self._withdraw(waiter)
            if isinstance(error, TimeoutError):
                message = f"The request waited {timeout:g} s in the queue without being started."
                raise timed_out(message, reason="queue_timeout") from None
            raise

    def _make_room(self, newcomer: Waiter) -> None:
        """Evict waiters until the newcomer fits. Raises `RefusedError` if none may be evicted."""
        if self._queue.peek(self._below_concurrency) is None and self._may_run(newcomer):
            return
        while not self._queue.has_room(newcomer.cost):
            evicted = self._queue.evicted_for(newcomer.tenant, newcomer.priority)
            if evicted is None:
                raise self._queue_full()
            self._queue.remove(evicted)
            evicted.granted.set_exception(self._queue_full())

    def _queue_full(self) -> RefusedError:
        return too_many_requests(
            f"The queue is full: {len(self._queue)} requests with {self._queue.num_tokens} tokens "
            "wait. Try again later.",
            reason="queue_full",
            retry_after=self.retry_after(),
        )

    def _below_concurrency(self, waiter: Waiter) -> bool:
        limit = waiter.max_concurrency
        return limit is None or self._running_of_tenant[waiter.tenant] < limit

    def _may_run(self, waiter: Waiter) -> bool:
        if not self._below_concurrency(waiter):
            return False
        return self.num_running == 0 or (
            self.num_running_sequences + waiter.cost.num_sequences
            <= self.limits.max_running_sequences
            and self.num_running_tokens + waiter.cost.tokens <= self.limits.max_running_tokens
        )

    def _dispatch(self) -> None:
        """Grant slots in the queue's order. If the next waiter does not fit, the rest wait too."""
        while (waiter := self._queue.peek(self._below_concurrency)) is not None:
            if not self._may_run(waiter):
                return
            self._queue.serve(waiter)
            self._count(waiter.tenant, waiter.cost, 1)
            waiter.granted.set_result(None)

    def _withdraw(self, waiter: Waiter) -> None:
        """Undo what `_enter` did for a waiter that was evicted, timed out or was cancelled."""
        if not waiter.granted.done():
            self._queue.remove(waiter)
            waiter.granted.cancel()
        elif waiter.granted.exception() is None:
            self._count(waiter.tenant, waiter.cost, -1)
            self._queue.charge(waiter.tenant, -waiter.cost.tokens)
        self._dispatch_or_note_idle()

    def _leave(self, slot: Slot) -> None:
        self._count(slot.tenant, slot.cost, -1)
        self._queue.charge(slot.tenant, slot.used_tokens - slot.cost.tokens)
        self.rate_limiter.settle(slot.key, slot.cost.tokens, slot.used_tokens)
        self._throughput.note_finished(slot.cost.tokens, self._clock())
        self._dispatch_or_note_idle()

    def _dispatch_or_note_idle(self) -> None:
        self._dispatch()
        if not self.num_running and not self._queue:
            self._throughput.note_idle()

    def _count(self, tenant: str, cost: Cost, sign: int) -> None:
        self.num_running += sign
        self.num_running_sequences += sign * cost.num_sequences
        self.num_running_tokens += sign * cost.tokens
        self._running_of_tenant[tenant] += sign
        if not self._running_of_tenant[tenant]:
            del self._running_of_tenant[tenant]
