"""Shares the rate limits of keys between ingresses: each charges what the others have charged."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec

from stonechat_server.access.keys import ApiKey
from stonechat_server.admission.rate_limits import RateLimiter

SECONDS = 1.0
"""How far the ingresses' knowledge of each other lags behind."""
FORGET_SECONDS = 60.0

logger = logging.getLogger("stonechat.ray")


class Charge(msgspec.Struct, frozen=True, array_like=True):
    """The requests and tokens that a key was charged, and what of the key its limits depend on."""

    key: str
    priority: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    num_requests: int
    num_tokens: int


_decode = msgspec.msgpack.Decoder(list[Charge]).decode


def taken_from(limiter: RateLimiter) -> list[Charge]:
    """What was charged here since the last call."""
    return [
        Charge(key.name, key.priority, key.requests_per_minute, key.tokens_per_minute, *amounts)
        for key, *amounts in limiter.take_charges()
    ]


def absorb(limiter: RateLimiter, data: bytes) -> None:
    """Charge what others have charged, as they sent it."""
    limiter.absorb(
        (
            ApiKey(
                name=charge.key,
                priority=charge.priority,
                requests_per_minute=charge.requests_per_minute,
                tokens_per_minute=charge.tokens_per_minute,
            ),
            charge.num_requests,
            charge.num_tokens,
        )
        for charge in _decode(data)
    )


class Limits:
    """The deployment class: it keeps the charges of each ingress for all others.

    Ray Serve calls plain methods in threads, side by side: those here are coroutines.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[str, list[Charge]] = {}
        self._seen: dict[str, float] = {}

    async def exchange(self, ingress: str, charges: bytes) -> bytes:
        """Take the charges of one ingress. Return those of others since its last call."""
        now = self._seen[ingress] = self._clock()
        for other in [name for name, seen in self._seen.items() if now - seen > FORGET_SECONDS]:
            del self._seen[other], self._waiting[other]
        for other, waiting in self._waiting.items():
            if other != ingress:
                waiting.extend(_decode(charges))
        others = self._waiting.get(ingress, [])
        self._waiting[ingress] = []
        return msgspec.msgpack.encode(others)


async def share_limits(
    limiter: RateLimiter, exchange: Callable[[bytes], Awaitable[bytes]], seconds: float = SECONDS
) -> None:
    """Exchange charges every so many seconds, until cancelled. Charges wait while that fails."""
    limiter.share()
    charges: list[Charge] = []
    while True:
        await asyncio.sleep(seconds)
        charges += taken_from(limiter)
        try:
            absorb(limiter, await exchange(msgspec.msgpack.encode(charges)))
            charges = []
        except Exception as error:
            logger.warning("rate limits are not shared with the other ingresses: %s", error)
