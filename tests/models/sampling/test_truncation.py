import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stonechat_models.sampling.inverse_cdf import padded_width
from stonechat_models.sampling.truncation import Cuts, cut_weights, top_values
from tests.models.sampling_reference import keep_heaviest

NUM_TOKENS = 6000


def weights_of(scales: list[float], seed: int = 0) -> torch.Tensor:
    """Return rows exp(scale * normal - peak). A small scale makes a wide nucleus."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(len(scales), padded_width(NUM_TOKENS))
    z = torch.randn(len(scales), NUM_TOKENS, generator=generator)
    z *= torch.tensor(scales).unsqueeze(1)
    rows[:, :NUM_TOKENS] = (z - z.amax(1, keepdim=True)).exp()
    return rows


def cuts(rows: list[tuple[float, float, float]]) -> Cuts:
    top_k, min_p, top_p = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return Cuts(
        top_k,
        min_p,
        top_p,
        any_top_k=any(row[0] > 0 for row in rows),
        any_min_p=any(row[1] > 0 for row in rows),
        any_top_p=any(row[2] < 1 for row in rows),
    )


def expected_cut(row: torch.Tensor, top_k: float, min_p: float, top_p: float) -> np.ndarray:
    p = row.double().numpy()
    if top_k:
        p = keep_heaviest(p, top_k, np.ones_like(p))
    p = np.where(p < np.float32(min_p), 0.0, p)
    return keep_heaviest(p, top_p * p.sum(), p) if top_p < 1 else p


FILTERS = [
    (0, 0.0, 0.9),
    (0, 0.0, 0.999),
    (0, 0.0, 0.0),
    (5, 0.0, 1.0),
    (256, 0.0, 1.0),
    (257, 0.0, 1.0),
    (3000, 0.0, 1.0),
    (10**9, 0.0, 1.0),
    (0, 0.05, 1.0),
    (0, 1.0, 1.0),
    (50, 0.01, 0.8),
    (2000, 1e-4, 0.95),
    (0, 0.0, 1.0),
]


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("scale", [8.0, 3.0, 1.0, 0.2])
def test_keeps_exactly_what_the_definition_keeps(scale: float, on_host: bool) -> None:
    weights = weights_of([scale] * len(FILTERS), seed=int(scale * 10))
    original = weights.clone()
    cut_weights(weights, cuts([(float(k), m, p) for k, m, p in FILTERS]), on_host=on_host)
    for row, before, filters in zip(weights, original, FILTERS, strict=True):
        expected = expected_cut(before, *filters)
        assert np.array_equal(row.double().numpy(), expected), filters


@given(
    st.lists(st.sampled_from([0.0, 1e-9, 0.125, 0.25, 0.5, 1.0]), min_size=1, max_size=30),
    st.integers(0, 40),
    st.sampled_from([0.0, 0.125, 0.3, 1.0]),
    st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]),
    st.booleans(),
)
def test_ties_are_kept_together(
    values: list[float], k: int, min_p: float, top_p: float, on_host: bool
) -> None:
    row = torch.zeros(1, 4096)
    row[0, : len(values)] = torch.tensor(values)
    row[0, len(values)] = 1.0
    expected = expected_cut(row[0], float(k), min_p, top_p)
    cut_weights(row, cuts([(float(k), min_p, top_p)]), on_host=on_host)
    assert np.array_equal(row[0].double().numpy(), expected)


@pytest.mark.parametrize("k", [1, 20, 256])
def test_top_values(k: int) -> None:
    rows = weights_of([3.0, 0.5, 0.0])
    values, columns = top_values(rows, k)
    assert torch.equal(values, rows.topk(k).values)
    assert torch.equal(rows.gather(1, columns), values)
    assert all(len(set(row)) == k for row in columns.tolist())


@pytest.mark.parametrize("on_host", [True, False])
def test_a_row_is_cut_alike_in_any_batch(on_host: bool) -> None:
    weights = weights_of([4.0, 0.3, 2.0, 0.1, 1.0] * 3)
    filters = [
        (0.0, 0.0, 0.9),
        (700.0, 0.0, 1.0),
        (0.0, 0.1, 1.0),
        (40.0, 0.01, 0.5),
        (0, 0, 1.0),
    ] * 3
    together = weights.clone()
    cut_weights(together, cuts(filters), on_host=on_host)
    for i, row_filters in enumerate(filters):
        alone = weights[i : i + 1].clone()
        cut_weights(alone, cuts([row_filters]), on_host=on_host)
        assert torch.equal(alone[0], together[i])
