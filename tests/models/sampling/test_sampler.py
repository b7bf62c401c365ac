import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stonechat_models.backends.native.bindings import load_library
from stonechat_models.backends.native.compile import find_compiler
from stonechat_models.sampling.edits import edit_rows
from stonechat_models.sampling.sampler import Sampler
from stonechat_models.sampling.state import SamplingState
from stonechat_models.types import SamplingParams
from tests.models.sampling.tensor_sampler import TensorSampler
from tests.models.sampling.test_edits import Allow
from tests.models.sampling_reference import distribution, edited, log_softmax
from tests.nightly import one_in

NUM_TOKENS = 700
SamplerOf = Callable[[int], Sampler]
OUTPUT = [1, 1, 1, 2, 5, 5, 690]


@pytest.fixture(params=["pytorch", "compiled"])
def sampler_of(request: pytest.FixtureRequest) -> Iterator[SamplerOf]:
    """Makes the sampler of a vocabulary: that in PyTorch, or that of the native backend."""
    if request.param == "pytorch":
        yield lambda size: Sampler(size, "cpu")
        return
    if find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    library = load_library()
    pool = library.pool_create(2)
    yield lambda size: TensorSampler(library, pool, size)
    library.pool_destroy(pool)


def state_of(
    seed: int = 0, choice: int = 0, output: tuple[int, ...] = (), **params: object
) -> SamplingState:
    state = SamplingState(SamplingParams(**params), seed, choice, [3, 9, 9])  # type: ignore[arg-type]
    for token in output:
        state.append(token)
    return state


def random_logits(
    num_rows: int, size: int = NUM_TOKENS, scale: float = 2.0, seed: int = 1
) -> torch.Tensor:
    return torch.randn(num_rows, size, generator=torch.Generator().manual_seed(seed)) * scale


BIAS = {1: 2.0, 2: -100.0, 300: 5.0}
COMBINATIONS: list[dict[str, object]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"temperature": 0.01},
    {"top_k": 7},
    {"top_k": 400},
    {"min_p": 0.1},
    {"top_p": 0.6},
    {"top_p": 0.99, "temperature": 2.0},
    {"top_p": 0.0},
    {"logit_bias": BIAS},
    {"frequency_penalty": 1.2, "presence_penalty": 0.4},
    {"frequency_penalty": -2.0, "presence_penalty": -2.0},
    {"repetition_penalty": 1.8},
    {"temperature": 0.8, "top_k": 50, "min_p": 0.01, "top_p": 0.9},
    {
        "temperature": 1.7,
        "top_k": 500,
        "top_p": 0.95,
        "logit_bias": BIAS,
        "repetition_penalty": 1.2,
    },
    {
        "temperature": 1.3,
        "min_p": 0.02,
        "top_p": 0.7,
        "frequency_penalty": 0.5,
        "presence_penalty": 1.0,
    },
]


@pytest.mark.parametrize("params", one_in(2, COMBINATIONS), ids=lambda p: ",".join(p) or "plain")
def test_draws_follow_the_reference_distribution(
    sampler_of: SamplerOf, params: dict[str, object]
) -> None:
    stats = pytest.importorskip("scipy.stats")
    sampler = sampler_of(NUM_TOKENS)
    logits = random_logits(1)
    num_rows, num_draws = 128, 4_096
    expected = distribution(logits[0].numpy(), state_of(output=tuple(OUTPUT), **params)) * num_draws
    counts = np.zeros(NUM_TOKENS)
    for first in range(0, num_draws, num_rows):
        states = [state_of(first + i, i % 5, tuple(OUTPUT), **params) for i in range(num_rows)]
        result = sampler(logits.expand(num_rows, -1).clone(), states)
        assert result.errors == {}
        counts += np.bincount(result.token_ids, minlength=NUM_TOKENS)
    assert counts[expected == 0].sum() == 0
    is_frequent = expected >= 5
    observed = np.append(counts[is_frequent], counts[~is_frequent].sum())
    predicted = np.append(expected[is_frequent], expected[~is_frequent].sum())
    observed, predicted = observed[predicted > 0], predicted[predicted > 0]
    if len(observed) > 1:
        assert stats.chisquare(observed, predicted * observed.sum() / predicted.sum()).pvalue > 1e-4


TINY = (1e-320, 1e-40, 1e-12)  # below float32's and float64's normal numbers
EXTREMES: dict[str, tuple[object, ...]] = {
    "temperature": (0.0, *TINY, 2.0),
    "top_p": (0.0, *TINY, 1 - 2.0**-53, 1.0),
    "min_p": (*TINY, 1 - 2.0**-53, 1.0),
    "top_k": (1, NUM_TOKENS, 2**62),
    "repetition_penalty": (0.01, 1 - 2.0**-53, 10.0),
    "frequency_penalty": (-2.0, -1e-320, 2.0),
    "presence_penalty": (-2.0, 1e-320, 2.0),
    "logit_bias": (
        dict.fromkeys(range(NUM_TOKENS), -100.0),
        dict.fromkeys(range(NUM_TOKENS), 100.0),
        {1: -100.0, 2: 1e-320},
    ),
}
PEAK_ONLY = {"temperature": (0.0, *TINY), "top_p": (0.0, *TINY), "min_p": (1.0,), "top_k": (1,)}


@pytest.mark.parametrize("scale", [0.0, 2.0, 1e30])
def test_extreme_values_define_a_distribution(sampler_of: SamplerOf, scale: float) -> None:
    """Alone and in pairs, at any scale of the logits. `scale` 0 makes all tokens equal."""
    values = [(name, value) for name, values in EXTREMES.items() for value in values]
    pairs = [(a, b) for a in values for b in values if a[0] < b[0]]
    states = [
        state_of(i, output=tuple(OUTPUT), top_logprobs=i % 3 or None, **dict(pair))
        for i, pair in enumerate(pairs)
    ]
    logits = random_logits(len(states), scale=scale)
    result = sampler_of(NUM_TOKENS)(logits.clone(), states)
    assert result.errors == {}
    edit_rows(logits.numpy(), states)
    assert logits.isfinite().all()
    for row, pair in enumerate(pairs):
        token = result.token_ids[row]
        if any(value in PEAK_ONLY.get(name, ()) for name, value in pair):
            assert logits[row, token] == logits[row].max(), pair
        entry = result.logprobs[row]
        assert entry is None or math.isfinite(entry.logprob) or scale > 2.0


def test_draws_at_successive_positions_follow_the_reference_distribution(
    sampler_of: SamplerOf,
) -> None:
    stats = pytest.importorskip("scipy.stats")
    sampler = sampler_of(50)
    logits = random_logits(1, 50)
    state = state_of(seed=-5, top_p=0.8)
    counts = np.zeros(50)
    for _ in range(1000):
        (token,) = sampler(logits.clone(), [state]).token_ids
        counts[token] += 1
        state.append(token)
    expected = distribution(logits[0].numpy(), state_of(top_p=0.8)) * 1000
    assert counts[expected == 0].sum() == 0
    is_possible = expected > 0
    assert stats.chisquare(counts[is_possible], expected[is_possible]).pvalue > 1e-4


def many_kinds() -> list[SamplingState]:
    """Return rows of every kind, some with logprobs."""
    kinds: list[dict[str, object]] = [
        {"temperature": 0.0},
        {"temperature": 0.0, "logit_bias": BIAS},
        {"top_k": 1},
        *COMBINATIONS,
    ]
    states = [
        state_of(
            i * 77 - 3,
            i % 3,
            tuple(OUTPUT[: i % 8]),
            **params,
            top_logprobs=[None, 0, 3, 20][i % 4],
        )
        for i, params in enumerate(kinds)
    ]
    constrained_state = state_of(5, temperature=1.5, top_p=0.9)
    constrained_state.constraint = Allow({4, 5, 6, 600})
    suppressed_state = state_of(6, top_logprobs=2)
    suppressed_state.suppressed_ids = (0, 1)
    return [*states, constrained_state, suppressed_state]


@pytest.mark.parametrize("size", [NUM_TOKENS, 20_011])
def test_a_row_has_the_same_bits_in_any_batch(sampler_of: SamplerOf, size: int) -> None:
    sampler = sampler_of(size)
    states = many_kinds()
    logits = random_logits(len(states), size, scale=1.0)
    together = sampler(logits.clone(), states)
    assert together.errors == {}
    generator = np.random.default_rng(0)
    batches = [[i] for i in range(len(states))]
    batches += [list(generator.permutation(len(states))[:n]) for n in (2, 3, 5, 9, 16)]
    for rows in batches:
        result = sampler(logits[rows].clone(), [states[i] for i in rows])
        assert result.token_ids == [together.token_ids[i] for i in rows]
        assert result.logprobs == [together.logprobs[i] for i in rows]


def test_the_same_seed_gives_the_same_draws_and_choices_differ(sampler_of: SamplerOf) -> None:
    sampler = sampler_of(NUM_TOKENS)
    logits = random_logits(1, scale=0.1)

    def draws(seed: int, choice: int) -> list[int]:
        states = [state_of(seed, choice, (0,) * k) for k in range(20)]
        return sampler(logits.expand(20, -1).clone(), states).token_ids

    assert draws(-(2**63), 0) == draws(-(2**63), 0)
    different = [draws(seed, c) for seed in (-(2**63), -1, 0, 2**63 - 1) for c in (0, 1, 127)]
    assert len({tuple(tokens) for tokens in different}) == len(different)
    assert len(set(different[0])) > 10


def test_greedy_takes_the_first_of_the_largest(sampler_of: SamplerOf) -> None:
    sampler = sampler_of(NUM_TOKENS)
    logits = torch.full((3, NUM_TOKENS), -5.0)
    logits[0, [8, 9, 650]] = 3.0
    logits[1, [4]], logits[1, [5]] = -0.0, 0.0
    logits[2, 3] = float("-inf")
    states = [state_of(temperature=0.0), state_of(top_k=1), state_of(temperature=0.0, top_p=0.5)]
    assert sampler(logits, states).token_ids == [8, 4, 0]


def test_greedy_after_edits(sampler_of: SamplerOf) -> None:
    sampler = sampler_of(NUM_TOKENS)
    logits = random_logits(1)
    state = state_of(output=tuple(OUTPUT), temperature=0.0, frequency_penalty=2.0, logit_bias=BIAS)
    expected = int(np.argmax(edited(logits[0].numpy(), state)))
    assert sampler(logits, [state]).token_ids == [expected]


def test_tiny_temperatures_choose_the_largest(sampler_of: SamplerOf) -> None:
    sampler = sampler_of(NUM_TOKENS)
    logits = random_logits(3)
    states = [state_of(temperature=t) for t in (1e-4, 1e-20, 5e-324)]
    assert sampler(logits.clone(), states).token_ids == logits.argmax(1).tolist()


def test_logprobs_are_of_the_raw_logits(sampler_of: SamplerOf) -> None:
    sampler = sampler_of(NUM_TOKENS)
    logits = random_logits(4, scale=5.0)
    logits[3, 100:] = float("-inf")
    states = [
        state_of(top_logprobs=5, temperature=0.3, top_p=0.5),
        state_of(top_logprobs=0, logit_bias={7: 100.0}),
        state_of(top_logprobs=None),
        state_of(top_logprobs=20, output=tuple(OUTPUT), repetition_penalty=3.0, temperature=0.0),
    ]
    result = sampler(logits.clone(), states)
    assert result.logprobs[2] is None
    assert result.token_ids[1] == 7
    for row, k in ((0, 5), (1, 0), (3, 20)):
        entry, expected = result.logprobs[row], log_softmax(logits[row].numpy())
        assert entry is not None
        assert entry.token_id == result.token_ids[row]
        assert entry.logprob == pytest.approx(expected[entry.token_id], abs=1e-6)
        assert list(entry.top_ids) == np.argsort(-expected, kind="stable")[:k].tolist()
        np.testing.assert_allclose(entry.top_logprobs, expected[list(entry.top_ids)], atol=1e-6)


def test_logprobs_of_few_tokens_and_of_ties(sampler_of: SamplerOf) -> None:
    sampler = sampler_of(4)
    logits = torch.tensor([[0.0, 1.0, float("-inf"), 1.0]])
    entry = sampler(logits, [state_of(top_logprobs=20)]).logprobs[0]
    assert entry is not None
    assert entry.top_ids == (1, 3, 0)  # token 2 cannot occur


BAD = [float("nan"), float("inf")]


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 9}])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_row_fails_alone(
    sampler_of: SamplerOf, params: dict[str, object], bad: float
) -> None:
    sampler = sampler_of(NUM_TOKENS)
    logits = random_logits(3)
    good = sampler(logits.clone(), [state_of(i, top_logprobs=1, **params) for i in range(3)])
    logits[1, 600] = bad
    result = sampler(logits, [state_of(i, top_logprobs=1, **params) for i in range(3)])
    assert result.errors == {1: "the model's logits are not finite"}
    assert (result.token_ids[1], result.logprobs[1]) == (-1, None)
    for row in (0, 2):
        assert result.token_ids[row] == good.token_ids[row]
        assert result.logprobs[row] == good.logprobs[row]


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"min_p": 0.1}])
def test_a_row_with_nothing_allowed_fails_alone(
    sampler_of: SamplerOf, params: dict[str, object]
) -> None:
    states = [state_of(1, **params), state_of(2, **params)]
    states[1].constraint = Allow(set())
    result = sampler_of(NUM_TOKENS)(random_logits(2), states)
    assert result.errors == {1: "no token is allowed"}
    assert result.token_ids[0] >= 0


def test_a_nan_that_an_edit_hides_does_not_reach_the_logprobs(sampler_of: SamplerOf) -> None:
    logits = random_logits(1)
    logits[0, 5] = float("nan")
    state = state_of(top_logprobs=2)
    state.constraint = Allow({1, 2})
    result = sampler_of(NUM_TOKENS)(logits, [state])
    assert result.errors == {0: "the model's logits are not finite"}


def test_constraints_bound_every_kind_of_row(sampler_of: SamplerOf) -> None:
    sampler = sampler_of(NUM_TOKENS)
    for params in ({}, {"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 300}):
        for seed in range(20):
            state = state_of(seed, **params)
            state.constraint = Allow({31, 32, 699})
            assert sampler(random_logits(1), [state]).token_ids[0] in {31, 32, 699}


def test_other_inputs(sampler_of: SamplerOf) -> None:
    sampler = sampler_of(NUM_TOKENS)
    assert sampler(torch.empty(0, NUM_TOKENS), []).token_ids == []
    with pytest.raises(ValueError, match="1 rows of 700"):
        sampler(torch.empty(1, 5), [state_of()])
    logits = random_logits(2)
    states = [state_of(temperature=0.0), state_of(3)]
    half_logits = logits.bfloat16()
    expected = sampler(half_logits.float(), states).token_ids
    assert sampler(half_logits, states).token_ids == expected
    strided_logits = torch.cat([logits, logits], 1)[:, :NUM_TOKENS]
    assert sampler(strided_logits, states).token_ids == sampler(logits.clone(), states).token_ids


class Work(TorchDispatchMode):
    """Counts operators by name, and the elements of the largest tensor that each one handles."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls: Counter[str] = Counter()
        self.num_elements: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        leaves = tree_leaves((args, kwargs, result))
        self.num_calls[name] += 1
        self.num_elements[name] += max(x.numel() for x in leaves if isinstance(x, torch.Tensor))
        return result


@pytest.mark.parametrize(
    ("params", "max_passes"),
    [({"temperature": 0.0}, 3), ({}, 15), ({"top_p": 0.9}, 35), ({"top_k": 40}, 27)],
    ids=["greedy", "plain", "top_p", "top_k"],
)
def test_a_full_batch_takes_a_few_passes(params: dict[str, object], max_passes: int) -> None:
    """No row's vocabulary is sorted, and no row's logits have operators of their own."""
    calls = []
    for num_rows in (8, 32):
        sampler = Sampler(49_152, "cpu")
        logits = random_logits(num_rows, 49_152, scale=3.0)
        states = [state_of(i, **params) for i in range(num_rows)]
        with Work() as work:
            sampler(logits, states)
        calls.append(work.num_calls.total())
        assert work.num_elements.total() < max_passes * logits.numel()
        num_sorted = sum(work.num_elements[name] for name in ("sort", "argsort", "topk"))
        assert num_sorted < logits.numel() / 4
    assert calls[1] < 2 * calls[0]
