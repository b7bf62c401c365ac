"""Rate limits per key, in requests and tokens per minute: token buckets, and headers about them.

The headers and their duration format (`6m0s`, `120ms`) are those that OpenAI's API sends.
"""

import time
from collections.abc import Callable, Iterable

from stonechat_server.access.keys import BATCH_PRIORITY, ApiKey
from stonechat_server.admission.refusals import too_many_requests


class TokenBucket:
    """Holds up to `capacity` and refills evenly within a minute. A debt is a negative level."""

    __slots__ = ("_level", "_updated", "capacity")

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self._level = float(capacity)
        self._updated = now

    def level(self, now: float) -> float:
        """The level of the bucket at that time."""
        self._level = min(
            float(self.capacity),
            self._level + max(0.0, now - self._updated) * self.capacity / 60.0,
        )
        self._updated = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take an amount out. A negative amount is put back."""
        self._level = min(float(self.capacity), self.level(now) - amount)

    def seconds_until(self, amount: float, now: float) -> float:
        """Seconds until the bucket holds that amount, which must not exceed its capacity."""
        return max(0.0, (amount - self.level(now)) * 60.0 / self.capacity)


Buckets = dict[str, TokenBucket]
"""Those of `requests` and of `tokens`, where a key has such a limit."""


def _limits_of(key: ApiKey) -> dict[str, int]:
    limits = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
    return {kind: limit for kind, limit in limits.items() if limit}


class RateLimiter:
    """Charges each request to the buckets of its key, or refuses it with 429 and `Retry-After`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, bool], Buckets] = {}
        """By the name of the key; its batches have buckets of their own."""
        self._charges: dict[tuple[str, bool], tuple[ApiKey, int, int]] | None = None
        """What `take_charges` returns, by the same names; None if nobody asks for it."""

    def charge(self, key: ApiKey, num_tokens: int) -> None:
        """Charge a request and its expected tokens.

        Raises `RefusedError` (429) if a limit is reached, and then charges nothing.
        """
        now = self._clock()
        self._check(key, num_tokens, now)
        self._take(key, 1, num_tokens, now)
        self._note(key, 1, num_tokens)

    def check(self, key: ApiKey) -> None:
        """Raise `RefusedError` (429) if the limits of the key allow not even one token more."""
        self._check(key, 1, self._clock())

    def settle(self, key: ApiKey, num_charged: int, num_used: int) -> None:
        """Correct a charge to the tokens that were used. If they are more, a debt may remain."""
        self._take(key, 0, num_used - num_charged, self._clock())
        self._note(key, 0, num_used - num_charged)

    def share(self) -> None:
        """Begin to note what is charged, for `take_charges`."""
        self._charges = {}

    def take_charges(self) -> list[tuple[ApiKey, int, int]]:
        """The requests and tokens that each key was charged since the last call."""
        charges, self._charges = self._charges or {}, {}
        return list(charges.values())

    def absorb(self, charges: Iterable[tuple[ApiKey, int, int]]) -> None:
        """Charge what other processes have charged. A debt may remain."""
        now = self._clock()
        for key, num_requests, num_tokens in charges:
            self._take(key, num_requests, num_tokens, now)

    def _check(self, key: ApiKey, num_tokens: int, now: float) -> None:
        for kind, bucket in self._buckets_of(key, now).items():
            amount, limit = num_tokens if kind == "tokens" else 1, bucket.capacity
            wait = None if amount > limit else bucket.seconds_until(amount, now)
            if wait is None:
                message = (
                    f"Request too large for {kind} per minute: the limit is {limit}, and the "
                    f"prompt with its max tokens is {amount}."
                )
            elif wait > 0:
                asked = f", and at least {amount} are requested" if kind == "tokens" else ""
                message = (
                    f"Rate limit reached for {kind} per minute: the limit is {limit}{asked}. "
                    f"Try again in {format_duration(wait)}."
                )
            else:
                continue
            reason, headers = f"{kind}_per_minute", self.headers(key)
            raise too_many_requests(message, reason=reason, retry_after=wait, headers=headers)

    def _take(self, key: ApiKey, num_requests: int, num_tokens: int, now: float) -> None:
        for kind, bucket in self._buckets_of(key, now).items():
            bucket.take(num_requests if kind == "requests" else num_tokens, now)

    def _note(self, key: ApiKey, num_requests: int, num_tokens: int) -> None:
        if self._charges is not None:
            name = _bucket_name(key)
            _, requests, tokens = self._charges.get(name, (key, 0, 0))
            self._charges[name] = key, requests + num_requests, tokens + num_tokens

    def headers(self, key: ApiKey) -> dict[str, str]:
        """The `x-ratelimit-*` headers of a key. A key without limits has none."""
        now = self._clock()
        headers: dict[str, str] = {}
        for kind, bucket in self._buckets_of(key, now).items():
            full = bucket.seconds_until(bucket.capacity, now)
            headers[f"x-ratelimit-limit-{kind}"] = str(bucket.capacity)
            headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, int(bucket.level(now))))
            headers[f"x-ratelimit-reset-{kind}"] = format_duration(full)
        return headers

    def _buckets_of(self, key: ApiKey, now: float) -> Buckets:
        """The buckets of a key; new ones if its limits have changed in the keys file."""
        name, limits = _bucket_name(key), _limits_of(key)
        buckets = self._buckets.get(name)
        if buckets is None or limits != {kind: one.capacity for kind, one in buckets.items()}:
            buckets = {kind: TokenBucket(limit, now) for kind, limit in limits.items()}
            self._buckets[name] = buckets
        return buckets


def _bucket_name(key: ApiKey) -> tuple[str, bool]:
    return key.name, key.priority >= BATCH_PRIORITY


def format_duration(seconds: float) -> str:
    """Write seconds as `1h2m3s`, `6m0s`, `8.64s`, `120ms` or `0s`, rounded to a millisecond."""
    milliseconds = round(seconds * 1000)
    if milliseconds == 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{milliseconds / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
