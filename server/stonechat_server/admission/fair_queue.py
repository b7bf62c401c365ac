"""A bounded queue that is fair between tenants: keys, or client addresses if there are no keys.

Tenants of the best priority go first. Among them, the tenant that has received the fewest tokens
so far goes first. A tenant that was idle starts level with the others (start-time fair queueing,
Goyal et al., 1996). A full queue evicts a waiter of the tenant with the most waiters (McKenney,
1990), so that a flood fills the queue only while no other tenant needs a place.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from stonechat_server.access.keys import ApiKey

MAX_REMEMBERED_TENANTS = 4096


@dataclass(frozen=True, slots=True)
class Cost:
    """The expected cost of a request."""

    tokens: int
    """Those of its prompts and of the completions of all choices."""
    running_tokens: int
    """How many of them it may hold at a time: fewer if not all of its prompts run at once."""
    num_sequences: int = 1
    """How many sequences run at a time."""


@dataclass(slots=True, eq=False)
class Admission:
    """The place of one request: first in the queue, then among the running requests."""

    key: ApiKey
    tenant: str
    cost: Cost
    granted: asyncio.Future[None] | None = None
    """Resolved when the request may run; fails when it is evicted. None: it never had to wait."""
    num_used_tokens: int = 0
    """Set by the holder to prompt + completion tokens."""


@dataclass(slots=True)
class _Tenant:
    priority: int
    order: int
    waiters: deque[Admission] = field(default_factory=deque)
    num_tokens: int = 0


class FairQueue:
    """Admissions by tenant, with a bound on their number and on their tokens."""

    def __init__(self, max_requests: int, max_tokens: int) -> None:
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self.num_waiters = 0
        self._tenants: dict[str, _Tenant] = {}
        self._served: dict[str, float] = {}
        """Tokens that each tenant has received. `push` raises a lower value to the virtual time."""
        self._virtual_time = 0.0
        self._order = itertools.count()

    def has_room(self, cost: Cost) -> bool:
        """Whether a waiter of that cost fits. An empty queue has room for any cost."""
        return self.num_waiters < self.max_requests and (
            self.num_waiters == 0 or self.num_tokens + cost.tokens <= self.max_tokens
        )

    def push(self, waiter: Admission) -> None:
        """Add a waiter behind the others of its tenant."""
        tenant = self._tenants.get(waiter.tenant)
        if tenant is None:
            tenant = self._tenants[waiter.tenant] = _Tenant(waiter.key.priority, next(self._order))
            self._served[waiter.tenant] = max(
                self._served.get(waiter.tenant, 0.0), self._virtual_time
            )
        tenant.priority = waiter.key.priority
        tenant.waiters.append(waiter)
        tenant.num_tokens += waiter.cost.tokens
        self.num_tokens += waiter.cost.tokens
        self.num_waiters += 1

    def peek(self, may_run: Callable[[Admission], bool]) -> Admission | None:
        """The waiter whose turn it is. Skips tenants whose first waiter fails `may_run`."""
        candidates = [
            (tenant.priority, self._served[name], tenant.order, tenant.waiters[0])
            for name, tenant in self._tenants.items()
            if may_run(tenant.waiters[0])
        ]
        return min(candidates, key=lambda candidate: candidate[:3])[3] if candidates else None

    def serve(self, waiter: Admission) -> None:
        """Remove a waiter that runs now, and charge its tenant."""
        self._virtual_time = max(self._virtual_time, self._served[waiter.tenant])
        self.remove(waiter)
        self.charge(waiter.tenant, waiter.cost.tokens)

    def serve_at_once(self, admission: Admission) -> None:
        """Charge the tenant of a request that runs without having been in the empty queue."""
        served = max(self._served.get(admission.tenant, 0.0), self._virtual_time)
        self._served[admission.tenant] = self._virtual_time = served
        self.charge(admission.tenant, admission.cost.tokens)

    def charge(self, tenant: str, num_tokens: int) -> None:
        """Add to the tokens that a tenant has received (negative: it used fewer than expected)."""
        self._served[tenant] = max(self._served.get(tenant, 0.0), 0.0) + num_tokens
        if len(self._served) > MAX_REMEMBERED_TENANTS:
            self._forget_idle()

    def remove(self, waiter: Admission) -> None:
        """Remove a waiter that gave up, was evicted or is served."""
        tenant = self._tenants[waiter.tenant]
        tenant.waiters.remove(waiter)
        tenant.num_tokens -= waiter.cost.tokens
        self.num_tokens -= waiter.cost.tokens
        self.num_waiters -= 1
        if not tenant.waiters:
            del self._tenants[waiter.tenant]

    def evicted_for(self, tenant_name: str, priority: int) -> Admission | None:
        """The waiter to evict for a newcomer of a tenant, or None to refuse the newcomer.

        It is the newest waiter of the tenant with the worst priority and, among those, the most
        waiters. That must be another tenant, with a worse priority than the newcomer or with more
        waiters than the newcomer's tenant would then have.
        """
        longest = max(
            self._tenants.values(),
            key=lambda tenant: (tenant.priority, len(tenant.waiters)),
            default=None,
        )
        if longest is None or longest.priority < priority:
            return None
        own_tenant = self._tenants.get(tenant_name)
        own_length = len(own_tenant.waiters) if own_tenant else 0
        if longest is own_tenant or (
            longest.priority == priority and len(longest.waiters) <= own_length + 1
        ):
            return None
        return longest.waiters[-1]

    def _forget_idle(self) -> None:
        """Delete the counts of idle tenants that `push` would raise to the virtual time anyway."""
        self._served = {
            name: served
            for name, served in self._served.items()
            if name in self._tenants or served > self._virtual_time
        }
