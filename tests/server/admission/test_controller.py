import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from stonechat_server.access.keys import ApiKey
from stonechat_server.admission.controller import AdmissionControl, Tenants
from stonechat_server.admission.fair_queue import Admission, Cost
from stonechat_server.admission.limits import AdmissionLimits
from stonechat_server.admission.rate_limits import RateLimiter
from stonechat_server.admission.refusals import RefusedError
from tests.virtual_time import run

A, B = ApiKey(name="a"), ApiKey(name="b")
COST = Cost(100, 100)


def make(
    sequences: int = 1, tokens: int = 10_000, queue: int = 4, queue_tokens: int = 10_000
) -> AdmissionControl:
    return AdmissionControl(
        AdmissionLimits(
            max_running_sequences=sequences,
            max_running_tokens=tokens,
            max_queued_requests=queue,
            max_queued_tokens=queue_tokens,
        )
    )


@asynccontextmanager
async def slot(
    admission: AdmissionControl, key: ApiKey, cost: Cost, queue_timeout: float | None = None
) -> AsyncIterator[Admission]:
    """Hold a place among the running requests during the `async with` block."""
    place = await admission.admit(key, cost, tenant=f"key:{key.name}", queue_timeout=queue_timeout)
    try:
        yield place
    finally:
        admission.leave(place)


class Job:
    """A task that holds a slot until `finish` is called."""

    def __init__(self, admission: AdmissionControl, key: ApiKey, cost: Cost = COST) -> None:
        self.end = asyncio.Event()
        self.started = False
        self.task = asyncio.create_task(self._run(admission, key, cost))

    async def _run(self, admission: AdmissionControl, key: ApiKey, cost: Cost) -> None:
        async with slot(admission, key, cost) as place:
            self.started = True
            await self.end.wait()
            place.num_used_tokens = cost.tokens

    async def finish(self) -> None:
        self.end.set()
        await self.task


async def let_tasks_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def assert_idle(admission: AdmissionControl) -> None:
    assert admission.num_running == 0
    assert admission.num_running_sequences == 0
    assert admission.num_running_tokens == 0
    assert admission.num_queued == 0
    assert admission.num_queued_tokens == 0


def test_bounds_on_sequences_and_tokens() -> None:
    async def scenario() -> None:
        admission = make(sequences=4, tokens=1000)
        first = Job(admission, A, Cost(20, 20, num_sequences=3))
        second = Job(admission, A, Cost(20, 20, num_sequences=2))
        await let_tasks_run()
        assert (first.started, second.started) == (True, False)
        await first.finish()
        third = Job(admission, A, Cost(1000, 1000))
        await let_tasks_run()
        assert (second.started, third.started) == (True, False)
        await second.finish()
        await let_tasks_run()
        assert third.started
        await third.finish()
        assert_idle(admission)

    asyncio.run(scenario())


def test_a_request_larger_than_the_bounds_runs_alone() -> None:
    async def scenario() -> None:
        admission = make(sequences=2, tokens=100, queue_tokens=100)
        job = Job(admission, A, Cost(1000, 1000, num_sequences=8))
        await let_tasks_run()
        assert job.started
        await job.finish()
        assert_idle(admission)

    asyncio.run(scenario())


def test_a_full_queue_answers_429_with_the_time_at_recent_throughput() -> None:
    async def scenario() -> None:
        now = [0.0]
        admission = make(queue=3)
        admission = AdmissionControl(admission.limits, RateLimiter(), lambda: now[0])
        jobs = [Job(admission, A) for _ in range(4)]
        await let_tasks_run()
        with pytest.raises(RefusedError) as caught:
            async with slot(admission, A, COST):
                pass
        assert caught.value.headers == {"Retry-After": "5"}
        now[0] = 10.0
        await jobs[0].finish()
        jobs.append(Job(admission, A))
        await let_tasks_run()
        with pytest.raises(RefusedError) as caught:
            async with slot(admission, A, COST):
                pass
        # 100 tokens took 10 s and 300 wait.
        assert caught.value.status == 429
        assert caught.value.headers == {"Retry-After": "30"}
        for job in jobs[1:]:
            await job.finish()
        assert_idle(admission)

    asyncio.run(scenario())


def test_a_flood_of_one_key_does_not_starve_another() -> None:
    async def scenario() -> None:
        admission = make(queue=20)
        flood = [Job(admission, A) for _ in range(15)]
        await let_tasks_run()
        other = [Job(admission, B) for _ in range(3)]
        await let_tasks_run()
        order = []
        pending = {job: name for name, jobs in (("a", flood), ("b", other)) for job in jobs}
        while pending:
            job = next(job for job in pending if job.started)
            order.append(pending.pop(job))
            await job.finish()
            await let_tasks_run()
        assert Counter(order[:7])["b"] == 3
        assert_idle(admission)

    asyncio.run(scenario())


def test_a_flood_makes_room_in_the_queue_for_others() -> None:
    async def scenario() -> None:
        admission = make(queue=4)
        flood = [Job(admission, A) for _ in range(5)]
        await let_tasks_run()
        assert admission.num_queued == 4
        others = [Job(admission, B) for _ in range(2)]
        await let_tasks_run()
        evicted = [job for job in flood if job.task.done()]
        assert len(evicted) == 2
        for job in evicted:
            error = job.task.exception()
            assert isinstance(error, RefusedError)
            assert error.status == 429
        with pytest.raises(RefusedError):
            async with slot(admission, B, COST):
                pass
        for job in [*flood, *others]:
            if not job.task.done():
                await let_tasks_run()
                job.end.set()
        await asyncio.gather(*(job.task for job in [*flood, *others]), return_exceptions=True)
        assert_idle(admission)

    asyncio.run(scenario())


def test_a_better_priority_goes_first_and_the_concurrency_of_a_key_is_limited() -> None:
    async def scenario() -> None:
        admission = make(sequences=2)
        single = ApiKey(name="single", max_concurrency=1)
        urgent = ApiKey(name="urgent", priority=-1)
        first, second = Job(admission, single), Job(admission, single)
        await let_tasks_run()
        assert (first.started, second.started) == (True, False)
        third = Job(admission, B)
        await let_tasks_run()
        assert third.started
        fourth, fifth = Job(admission, B), Job(admission, urgent)
        await third.finish()
        await let_tasks_run()
        assert (fourth.started, fifth.started) == (False, True)
        for job in (first, fifth, second, fourth):
            await job.finish()
        assert_idle(admission)

    asyncio.run(scenario())


def test_queue_deadline_is_a_504() -> None:
    async def scenario() -> None:
        admission = make()
        async with slot(admission, A, COST):
            with pytest.raises(RefusedError) as caught:
                async with slot(admission, B, COST, queue_timeout=0.02):
                    pass
        assert caught.value.status == 504
        assert_idle(admission)

    asyncio.run(scenario())


@pytest.mark.parametrize("queue_timeout", [None, 60.0])
@pytest.mark.parametrize("steps", range(6))
def test_a_cancellation_at_any_moment_gives_everything_back(
    queue_timeout: float | None, steps: int
) -> None:
    """Also beside the grant: clients that run, and those that are next, may leave together."""

    async def wait(admission: AdmissionControl) -> None:
        async with slot(admission, B, COST, queue_timeout):
            await asyncio.Event().wait()

    async def scenario() -> None:
        admission = make()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(slot(admission, A, COST))
            waiter = asyncio.create_task(wait(admission))
            for _ in range(steps):
                await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.wait({waiter}, timeout=20)
        assert waiter.cancelled()
        assert_idle(admission)

    run(scenario())


def test_rate_limit_tokens_are_settled() -> None:
    async def scenario() -> None:
        admission = make()
        key = ApiKey(name="k", tokens_per_minute=1000)
        async with slot(admission, key, COST) as place:
            assert admission.rate_limiter.headers(key)["x-ratelimit-remaining-tokens"] == "900"
            place.num_used_tokens = 60
        assert admission.rate_limiter.headers(key)["x-ratelimit-remaining-tokens"] == "940"

    asyncio.run(scenario())


def test_a_flood_is_refused_before_its_bodies_are_read() -> None:
    async def scenario() -> None:
        admission = make(queue=2)
        jobs = [Job(admission, A) for _ in range(2)]
        await let_tasks_run()
        admission.refuse_early(A, "key:a")
        jobs.append(Job(admission, A))
        await let_tasks_run()
        with pytest.raises(RefusedError) as caught:
            admission.refuse_early(A, "key:a")
        assert int(caught.value.headers["Retry-After"]) >= 1
        admission.refuse_early(B, "key:b")  # would evict a waiter of the flood
        admission.refuse_early(ApiKey(name="a", priority=-1), "key:a2")
        for job in jobs:
            await job.finish()
        single = ApiKey(name="single", requests_per_minute=1)
        admission.refuse_early(single, "key:single")
        admission.rate_limiter.charge(single, 1)
        with pytest.raises(RefusedError):
            admission.refuse_early(single, "key:single")
        assert_idle(admission)

    asyncio.run(scenario())


def test_a_list_of_prompts_runs_within_its_share() -> None:
    limits = AdmissionLimits(
        max_running_sequences=16,
        max_running_tokens=10**6,
        max_queued_requests=1,
        max_queued_tokens=1,
    )
    texts = [Cost(3, 3)] * 100
    assert limits.cost_of(texts).num_sequences == 8
    assert replace(limits, max_share=0.25).cost_of(texts) == Cost(300, 12, 4)


def test_batches_fill_what_is_free_and_others_never_wait_for_them() -> None:
    async def run() -> None:
        admission = make(sequences=3, queue=8)
        batch = B.for_batches()
        low = [Job(admission, batch) for _ in range(5)]
        await let_tasks_run()
        assert [job.started for job in low] == [True] * 3 + [False] * 2
        high = [Job(admission, A) for _ in range(4)]
        await let_tasks_run()
        assert [job.started for job in high] == [True] * 3 + [False]
        await high[0].finish()
        await let_tasks_run()
        assert high[3].started  # before those of the batch, which came earlier
        for job in low[:3]:
            await job.finish()
        await let_tasks_run()
        assert [job.started for job in low] == [True] * 3 + [False] * 2
        for job in high[1:] + low[3:]:
            await job.finish()
        assert_idle(admission)

    asyncio.run(run())


def test_the_batches_of_a_key_have_limits_of_their_own() -> None:
    key = ApiKey(name="limited", requests_per_minute=1)
    limiter = RateLimiter(lambda: 0.0)
    limiter.charge(key, 10)
    with pytest.raises(RefusedError):
        limiter.check(key)
    limiter.charge(key.for_batches(), 10)
    with pytest.raises(RefusedError):
        limiter.check(key.for_batches())


def test_the_limits_of_a_key_hold_over_several_models() -> None:
    async def test() -> None:
        tenants = Tenants()
        limits = make().limits
        first, second = (AdmissionControl(limits, tenants=tenants) for _ in range(2))
        key = ApiKey(name="k", max_concurrency=1)
        running = await first.admit(key, COST, tenant="key:k")
        waiting = asyncio.ensure_future(second.admit(key, COST, tenant="key:k"))
        other = await second.admit(B, COST, tenant="key:b")
        second.leave(other)
        await asyncio.sleep(0)
        assert not waiting.done(), "the key has its one request in the other model"
        first.leave(running)
        second.leave(await asyncio.wait_for(waiting, 60))
        assert first.rate_limiter is second.rate_limiter

    asyncio.run(test())
