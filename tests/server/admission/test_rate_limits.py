import pytest

from stonechat_server.access.keys import ApiKey
from stonechat_server.admission.rate_limits import RateLimiter, format_duration
from stonechat_server.admission.refusals import RefusedError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.12, "120ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (360, "6m0s"),
        (3723.5, "1h2m3.5s"),
        (0.9999, "1s"),
        (59.9999, "1m0s"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_requests_per_minute() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    key = ApiKey(name="a", requests_per_minute=3)
    for _ in range(3):
        limiter.charge(key, 10)
    assert limiter.headers(key) == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    with pytest.raises(RefusedError) as caught:
        limiter.charge(key, 10)
    assert caught.value.status == 429
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.headers["Retry-After"] == "20"
    clock.now += 20
    limiter.charge(key, 10)


def test_tokens_per_minute_and_their_settlement() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    key = ApiKey(name="a", tokens_per_minute=600)
    limiter.charge(key, 500)
    with pytest.raises(RefusedError) as caught:
        limiter.charge(key, 200)
    assert caught.value.headers["Retry-After"] == "10"
    limiter.settle(key, 500, 100)
    assert limiter.headers(key)["x-ratelimit-remaining-tokens"] == "500"
    limiter.charge(key, 200)
    limiter.settle(key, 200, 900)
    assert limiter.headers(key)["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(RefusedError) as caught:
        limiter.charge(key, 1)
    assert int(caught.value.headers["Retry-After"]) == 41


def test_a_debt_of_tokens_is_noticed_before_the_size_of_a_request_is_known() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    key = ApiKey(name="a", tokens_per_minute=600)
    limiter.check(key)
    limiter.charge(key, 500)
    limiter.settle(key, 500, 700)
    with pytest.raises(RefusedError) as caught:
        limiter.check(key)
    assert caught.value.reason == "tokens_per_minute"
    assert caught.value.headers["Retry-After"] == "11"  # 101 tokens at 10 a second
    clock.now += 10.2
    limiter.check(key)
    with pytest.raises(RefusedError) as caught:
        limiter.charge(key, 50)
    assert caught.value.headers["Retry-After"] == "5"


def test_a_request_larger_than_the_limit_has_no_retry_after() -> None:
    limiter = RateLimiter(Clock())
    with pytest.raises(RefusedError) as caught:
        limiter.charge(ApiKey(name="a", tokens_per_minute=100), 101)
    assert "Retry-After" not in caught.value.headers
    assert caught.value.headers["x-ratelimit-remaining-tokens"] == "100"


def test_changed_limits_get_new_buckets_and_keys_are_separate() -> None:
    limiter = RateLimiter(Clock())
    limiter.charge(ApiKey(name="a", requests_per_minute=1), 1)
    limiter.charge(ApiKey(name="b", requests_per_minute=1), 1)
    limiter.charge(ApiKey(name="a", requests_per_minute=2), 1)
    assert limiter.headers(ApiKey(name="c")) == {}
