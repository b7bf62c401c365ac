import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stonechat_models.sampling import state
from stonechat_models.sampling.inverse_cdf import (
    draw,
    fold_max,
    fold_sum,
    level_widths,
    padded_width,
    prefix_sums,
    row_sums,
    sum_tree,
)
from stonechat_models.sampling.state import uniform_variate, uniform_variates


def weights_of(values: list[float], width: int = 4096) -> torch.Tensor:
    row = torch.zeros(1, width)
    row[0, : len(values)] = torch.tensor(values)
    return row


def variate(u: float) -> torch.Tensor:
    return torch.tensor([u], dtype=torch.float64)


@pytest.mark.parametrize(
    ("size", "width"), [(1, 4096), (4096, 4096), (49152, 49152), (50257, 53248)]
)
def test_padded_width(size: int, width: int) -> None:
    assert padded_width(size) == width


def test_levels_hold_the_sums() -> None:
    weights = torch.rand(3, 8192)
    for level in sum_tree(weights):
        stride = level.shape[1]
        expected = weights.double().view(3, -1, stride).sum(1)
        torch.testing.assert_close(level.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(row_sums(weights), weights.double().sum(1), rtol=1e-6, atol=0)
    assert torch.equal(fold_max(weights), weights.view(3, 16, 512).amax(1))
    assert torch.equal(fold_sum(torch.ones(2, 16)), torch.full((2, 1), 16.0))


@given(
    st.lists(st.sampled_from([0.0, 1e-30, 1e-8, 0.25, 1.0]), min_size=1, max_size=40),
    st.floats(min_value=2.0**-53, max_value=1 - 2.0**-53),
)
def test_a_zero_weight_is_never_drawn(values: list[float], u: float) -> None:
    token = int(draw(weights_of(values), variate(u)))
    assert not any(values) or values[token] > 0


def test_ends_of_the_interval() -> None:
    values = [0.0, 0.5, 0.0, 1.0, 1e-38, 0.0]
    for u in (2.0**-53, 0.5, 1 - 2.0**-53):
        assert int(draw(weights_of(values), variate(u))) in (1, 3, 4)


def test_each_token_takes_its_share_of_the_interval() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(300, generator=generator)
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    rows = weights_of(values.tolist()).expand(2000, -1).contiguous()
    counts = np.zeros(300)
    for part in grid.split(2000):
        counts += np.bincount(draw(rows, part).numpy(), minlength=300)
    expected = (values.double() / values.double().sum()).numpy() * 200_000
    assert np.abs(counts - expected).max() <= 2


def test_a_row_is_drawn_alike_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(4)
    weights = torch.rand(33, 8192, generator=generator) ** 8
    variates = torch.rand(33, dtype=torch.float64, generator=generator)
    together = draw(weights, variates)
    for i in range(33):
        assert draw(weights[i : i + 1], variates[i : i + 1]) == together[i]
        assert torch.equal(row_sums(weights[i : i + 1]), row_sums(weights)[i : i + 1])


@pytest.mark.parametrize("width", [1, 2, 12, 16, 64])
@pytest.mark.parametrize("in_order", [True, False])
def test_prefix_sums(width: int, in_order: bool) -> None:
    sums = torch.rand(5, width, dtype=torch.float64)
    expected = torch.from_numpy(np.cumsum(sums.numpy(), axis=1))
    torch.testing.assert_close(prefix_sums(sums, in_order=in_order), expected)


@pytest.mark.parametrize(
    ("num_tokens", "widths"),
    [
        (4096, [4096, 256, 16]),
        (16_384, [16_384, 1024, 64]),
        (20_480, [20_480, 1280, 80, 5]),
        (262_144, [262_144, 16_384, 1024, 64]),
        (266_240, [266_240, 16_640, 1040, 65]),
    ],
)
def test_levels(num_tokens: int, widths: list[int]) -> None:
    assert level_widths(num_tokens) == widths
    assert [level.shape[1] for level in sum_tree(torch.zeros(1, num_tokens))] == widths


def test_more_than_64_roots() -> None:
    """262,208 tokens is the vocabulary of some Gemma 3 models."""
    weights = torch.rand(2, padded_width(262_208))
    torch.testing.assert_close(row_sums(weights), weights.double().sum(1), rtol=1e-6, atol=0)
    tokens = draw(weights, torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64))
    assert tokens[0] == 0
    assert tokens[1] == weights.shape[1] - 1


@pytest.mark.parametrize("num_groups", [1, 3, 7, 12])
def test_row_sums_of_any_width(num_groups: int) -> None:
    weights = torch.rand(2, 4096 * num_groups)
    torch.testing.assert_close(row_sums(weights), weights.double().sum(1), rtol=1e-6, atol=0)


def test_variates_are_inside_the_open_interval_for_any_int64() -> None:
    numbers = (-(2**63), -1, 0, 1, 42, 2**63 - 1)
    variates = {uniform_variate(*c) for c in itertools.product(numbers, (0, 127), (0, 1, 2**31))}
    assert len(variates) == len(numbers) * 2 * 3
    assert all(0.0 < u < 1.0 for u in variates)


@pytest.mark.parametrize("digest", [b"\x00" * 8, b"\xff" * 8])
def test_no_digest_gives_an_end_of_the_interval(
    monkeypatch: pytest.MonkeyPatch, digest: bytes
) -> None:
    fake_hash = SimpleNamespace(digest=lambda: digest)
    monkeypatch.setattr(state, "hashlib", SimpleNamespace(blake2b=lambda *_, **__: fake_hash))
    assert 0.0 < uniform_variate(1, 2, 3) < 1.0


def test_variates_are_the_same_on_every_machine() -> None:
    assert uniform_variate(42, 0, 0) == uniform_variate(42, 0, 0)
    assert uniform_variate(42, 0, 0).hex() == "0x1.05bc6b819390cp-3"
    assert uniform_variate(-1, 1, 7).hex() == "0x1.9a2cdf7639ad1p-1"


def test_many_variates_are_those_of_one() -> None:
    numbers = (-(2**63), -1, 0, 1, 42, 2**63 - 1)
    counters = list(itertools.product(numbers, (0, 127), (0, 1, 2**31)))
    assert uniform_variates(counters).tolist() == [uniform_variate(*c) for c in counters]


def test_variates_are_uniform_along_each_counter() -> None:
    for axis in range(3):
        counters = [[7, 7, 7] for _ in range(20_000)]
        for i, counter in enumerate(counters):
            counter[axis] = i
        values = np.array([uniform_variate(*counter) for counter in counters])
        assert stats.kstest(values, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03
