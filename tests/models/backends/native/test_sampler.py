"""The compiled sampler computes what the sampler in PyTorch computes, on each instruction set."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from stonechat_models.backends.native.bindings import Library
from stonechat_models.sampling.inverse_cdf import draw, padded_width
from stonechat_models.sampling.sampler import Sampler
from stonechat_models.sampling.state import SamplingState, uniform_variate
from stonechat_models.sampling.truncation import Cuts, cut_weights
from stonechat_models.types import SamplingParams
from tests.models.backends.native.native_helpers import BUILDS, library_of
from tests.models.sampling.tensor_sampler import TensorSampler
from tests.models.sampling.test_sampler import many_kinds, random_logits

SIZES = (700, 4_096, 20_011, 151_936)
"""Padded to one root, one root, five and 38 roots."""
FILTERS: list[dict[str, float]] = [
    {},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"top_p": 0.0},
    {"top_k": 5},
    {"top_k": 256},
    {"top_k": 257},
    {"top_k": 600},
    {"top_k": 2**62},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 50, "min_p": 0.01, "top_p": 0.8},
    {"top_k": 400, "min_p": 1e-4, "top_p": 0.95},
]


@pytest.fixture(params=BUILDS, scope="module")
def library(request: pytest.FixtureRequest) -> Library:
    return library_of(request.param)


@pytest.fixture(scope="module", params=[1, 2, 3])
def pool(library: Library, request: pytest.FixtureRequest) -> Iterator[int]:
    pool = library.pool_create(request.param)
    yield pool
    library.pool_destroy(pool)


@pytest.fixture(scope="module")
def two_threads(library: Library) -> Iterator[int]:
    pool = library.pool_create(2)
    yield pool
    library.pool_destroy(pool)


def states_of(
    filters: list[dict[str, float]], temperature: float, seed: int
) -> list[SamplingState]:
    return [
        SamplingState(SamplingParams(temperature=temperature, **chosen), seed + i, i % 3, [0])  # type: ignore[arg-type]
        for i, chosen in enumerate(filters)
    ]


def writes_weights(filters: dict[str, float], size: int) -> bool:
    """Whether the weights are in place of the logits at the end."""
    return 0 < filters.get("top_k", 0) < size or filters.get("top_p", 1.0) < 1.0


def with_two_least(logits: torch.Tensor) -> torch.Tensor:
    """Make the two least logits of each row alike: a `top_k` of all but one then keeps all."""
    least = logits.topk(2, largest=False)
    return logits.scatter(1, least.indices, least.values[:, :1].expand(-1, 2))


def weights_of(sampler: TensorSampler, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The weights of logits from `with_two_least`, none of them cut."""
    rows, size = logits.shape
    weights = logits.clone()
    sampler(weights, states_of([{"top_k": size - 1}] * rows, temperature, 0))
    return weights


def cuts(filters: list[dict[str, float]]) -> Cuts:
    columns = [
        torch.tensor([float(f.get(name, off)) for f in filters], dtype=torch.float64)
        for name, off in (("top_k", 0.0), ("min_p", 0.0), ("top_p", 1.0))
    ]
    return Cuts(*columns, any_top_k=True, any_min_p=True, any_top_p=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [6.0, 2.0, 0.3])
def test_it_cuts_and_draws_as_in_pytorch_bit_for_bit(
    library: Library, two_threads: int, size: int, scale: float
) -> None:
    """Its own weights, cut and drawn from in PyTorch, give the same weights and tokens."""
    sampler = TensorSampler(library, two_threads, size)
    logits = with_two_least(random_logits(1, size, scale)).repeat(len(FILTERS), 1)
    weights = torch.zeros(len(FILTERS), padded_width(size))
    weights[:, :size] = weights_of(sampler, logits, 1.3)
    cut_weights(weights, cuts(FILTERS), on_host=True)
    for seed in range(3):
        states, left = states_of(FILTERS, 1.3, 100 * seed), logits.clone()
        result = sampler(left, states)
        assert result.errors == {}
        for filters, row, wanted in zip(FILTERS, left, weights, strict=True):
            if writes_weights(filters, size):
                assert torch.equal(row, wanted[:size])
        variates = [uniform_variate(s.seed, s.choice_index, s.num_output_tokens) for s in states]
        expected = draw(weights, torch.tensor(variates, dtype=torch.float64))
        assert result.token_ids == expected.tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.0])
def test_its_weights_are_those_of_pytorch(
    library: Library, two_threads: int, temperature: float
) -> None:
    logits = with_two_least(random_logits(4, 5_000, scale=4.0))
    logits[1, 17] = float("-inf")
    weights = weights_of(TensorSampler(library, two_threads, 5_000), logits, temperature)
    exponents = (logits - logits.amax(1, keepdim=True)) / torch.tensor(temperature)
    expected = exponents.double().exp()
    is_normal = expected > 1e-37  # smaller ones may be zero
    assert weights[1, 17] == 0.0
    np.testing.assert_allclose(weights[is_normal], expected[is_normal], rtol=5e-7)
    assert (weights[~is_normal] < 1e-36).all()


@pytest.mark.parametrize("size", [700, 20_011])
def test_rows_of_every_kind_get_the_tokens_of_pytorch(
    library: Library, pool: int, size: int
) -> None:
    states = [state for _ in range(4) for state in many_kinds()]
    logits = random_logits(len(states), size, scale=1.5, seed=3)
    expected = Sampler(size, "cpu")(logits.clone(), states)
    result = TensorSampler(library, pool, size)(logits.clone(), states)
    assert (result.token_ids, result.errors) == (expected.token_ids, {})
    for entry, wanted in zip(result.logprobs, expected.logprobs, strict=True):
        assert (entry is None) == (wanted is None)
        if entry is not None and wanted is not None:
            assert (entry.token_id, entry.top_ids) == (wanted.token_id, wanted.top_ids)
            values = [wanted.logprob, *wanted.top_logprobs]
            assert [entry.logprob, *entry.top_logprobs] == pytest.approx(values, abs=1e-5)


def test_a_row_has_the_same_bits_in_any_batch(library: Library, pool: int) -> None:
    size = 20_011
    sampler, states = TensorSampler(library, pool, size), many_kinds()
    logits = random_logits(len(states), size)
    together = logits.clone()
    result = sampler(together, states)
    for rows in ([3], [0], [13, 2, 7], [*range(len(states))][::-1]):
        some = logits[rows].clone()
        part = sampler(some, [states[i] for i in rows])
        assert part.token_ids == [result.token_ids[i] for i in rows]
        assert torch.equal(some, together[rows])


def test_ties_and_empty_tails(library: Library, two_threads: int) -> None:
    """All tokens alike; two tokens only; all weights but one underflow."""
    size = 9_000
    flat, two, one = torch.zeros(size), torch.full((size,), float("-inf")), torch.zeros(size)
    two[[5, 8_999]] = 1.0
    one[4_321] = 500.0
    logits = torch.stack([flat, two, one]).repeat(len(FILTERS), 1)
    filters = [f for f in FILTERS for _ in range(3)]
    sampler, reference = TensorSampler(library, two_threads, size), Sampler(size, "cpu")
    for seed in (0, 1):
        states = states_of(filters, 1.0, 1000 * seed)
        expected = reference(logits.clone(), states)
        assert sampler(logits.clone(), states) == expected
        assert set(expected.token_ids[1::3]) <= {5, 8_999}
        assert set(expected.token_ids[2::3]) == {4_321}
