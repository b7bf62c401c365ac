import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from stonechat_models.sampling import rng
from stonechat_models.sampling.rng import uniform_variate


def test_inside_the_open_interval_for_any_int64() -> None:
    numbers = (-(2**63), -1, 0, 1, 42, 2**63 - 1)
    variates = {uniform_variate(*c) for c in itertools.product(numbers, (0, 127), (0, 1, 2**31))}
    assert len(variates) == len(numbers) * 2 * 3
    assert all(0.0 < u < 1.0 for u in variates)


@pytest.mark.parametrize("digest", [b"\x00" * 8, b"\xff" * 8])
def test_no_digest_reaches_an_end(monkeypatch: pytest.MonkeyPatch, digest: bytes) -> None:
    fake_hash = SimpleNamespace(digest=lambda: digest)
    monkeypatch.setattr(rng, "hashlib", SimpleNamespace(blake2b=lambda *_, **__: fake_hash))
    assert 0.0 < uniform_variate(1, 2, 3) < 1.0


def test_the_same_on_every_machine() -> None:
    assert uniform_variate(42, 0, 0) == uniform_variate(42, 0, 0)
    assert uniform_variate(42, 0, 0).hex() == "0x1.05bc6b819390cp-3"
    assert uniform_variate(-1, 1, 7).hex() == "0x1.9a2cdf7639ad1p-1"


def test_uniform_along_each_counter() -> None:
    for axis in range(3):
        counters = [[7, 7, 7] for _ in range(20_000)]
        for i, counter in enumerate(counters):
            counter[axis] = i
        values = np.array([uniform_variate(*counter) for counter in counters])
        assert stats.kstest(values, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03
