"""Rate limits that several ingresses share."""

import asyncio
import inspect
from typing import Any

import msgspec
import pytest

from stonechat_server.access.keys import ApiKey
from stonechat_server.admission.rate_limits import RateLimiter
from stonechat_server.admission.refusals import RefusedError
from stonechat_server.ray_serve.limits import (
    FORGET_SECONDS,
    Limits,
    absorb,
    share_limits,
    taken_from,
)
from stonechat_server.ray_serve.replica import Replica
from tests.virtual_time import VirtualLoop

KEY = ApiKey(name="a", requests_per_minute=6, tokens_per_minute=1000)
NOTHING = msgspec.msgpack.encode([])
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def remaining(limiter: RateLimiter) -> tuple[str, str]:
    headers = limiter.headers(KEY)
    return headers["x-ratelimit-remaining-requests"], headers["x-ratelimit-remaining-tokens"]


async def test_what_one_ingress_charges_counts_at_the_others() -> None:
    limits = Limits()
    limiters = [RateLimiter(lambda: 0.0) for _ in range(3)]
    for number, limiter in enumerate(limiters):
        limiter.share()
        await limits.exchange(str(number), NOTHING)
    for _ in range(4):
        limiters[0].charge(KEY, 100)
    limiters[0].settle(KEY, 100, 40)
    limiters[1].charge(KEY, 10)
    for _ in range(2):
        for number, limiter in enumerate(limiters):
            charges = msgspec.msgpack.encode(taken_from(limiter))
            absorb(limiter, await limits.exchange(str(number), charges))
    assert {remaining(limiter) for limiter in limiters} == {("1", "650")}


async def test_a_key_is_refused_for_what_it_did_at_another_ingress() -> None:
    limits, left, right = Limits(), RateLimiter(lambda: 0.0), RateLimiter(lambda: 0.0)
    tasks = [
        asyncio.create_task(share_limits(limiter, _calls(limits, name), 0.001))
        for name, limiter in (("left", left), ("right", right))
    ]
    await asyncio.sleep(0.05)  # both are known
    for _ in range(6):
        left.charge(KEY, 1)
    for _ in range(1000):
        if remaining(right)[0] == "0":
            break
        await asyncio.sleep(0.01)
    with pytest.raises(RefusedError):
        right.charge(KEY, 1)
    for task in tasks:
        task.cancel()


def _calls(limits: Limits, name: str, failures: int = 0):  # type: ignore[no-untyped-def]
    left = failures

    async def exchange(charges: bytes) -> bytes:
        nonlocal left
        if left:
            left -= 1
            raise ConnectionError("it is being replaced")
        return await limits.exchange(name, charges)

    return exchange


async def test_charges_wait_while_nothing_can_be_exchanged() -> None:
    limits, left, right = Limits(), RateLimiter(lambda: 0.0), RateLimiter(lambda: 0.0)
    await limits.exchange("right", NOTHING)
    task = asyncio.create_task(share_limits(left, _calls(limits, "left", failures=3), 0.001))
    await asyncio.sleep(0)
    left.charge(KEY, 5)
    for _ in range(1000):
        absorb(right, await limits.exchange("right", NOTHING))
        if remaining(right)[0] == "5":
            break
        await asyncio.sleep(0.01)
    task.cancel()
    assert remaining(right) == ("5", "995")


async def test_an_ingress_that_is_gone_is_forgotten() -> None:
    now = 0.0
    limits = Limits(lambda: now)
    await limits.exchange("gone", NOTHING)
    now = FORGET_SECONDS + 1
    await limits.exchange("here", NOTHING)
    assert list(limits._waiting) == ["here"]


def test_nothing_is_noted_unless_limits_are_shared() -> None:
    limiter = RateLimiter(lambda: 0.0)
    limiter.charge(KEY, 5)
    assert limiter.take_charges() == []


@pytest.mark.parametrize("deployment", [Limits, Replica])
def test_no_method_runs_in_a_thread(deployment: type) -> None:
    """Ray Serve calls plain methods in threads, where they would meet each other and the engine."""
    methods = inspect.getmembers(deployment, inspect.isfunction)
    public = [method for name, method in methods if not name.startswith("_")]
    assert public
    for method in public:
        assert inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method), method
