"""The Triton sampler against `Sampler`, which is tested against definitions in float64.

Without a GPU the kernels run in Triton's interpreter. Exponentials there differ from PyTorch's in
the last bit, so a draw could fall on the other side of a token. The seeds here avoid that.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

import triton
import triton.language as tl

from stonechat_models.sampling.choose import check_states, differences
from stonechat_models.sampling.inverse_cdf import padded_width, sum_tree
from stonechat_models.sampling.sampler import Sampler
from stonechat_models.sampling.state import SampledTokens, SamplingState
from stonechat_models.sampling.triton import records as triton_records
from stonechat_models.sampling.triton import sampler as triton_sampler
from stonechat_models.sampling.triton.sampler import TritonSampler
from stonechat_models.sampling.triton.weights import load_weights
from tests.models.launches import counted_launches
from tests.models.sampling.test_edits import Allow
from tests.models.sampling.test_sampler import (
    BIAS,
    many_kinds,
    random_logits,
    state_of,
)
from tests.models.sampling_reference import distribution

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_TOKENS = 700
NUM_EXAMPLES = 300 if DEVICE.type == "cuda" else 12
"""The interpreter takes a tenth of a second a row."""


def assert_same(
    logits: torch.Tensor, states: list[SamplingState], others: list[SamplingState] | None = None
) -> SampledTokens:
    """Both samplers agree. `others`: the same states again, if they keep tensors of a device."""
    size = logits.shape[1]
    expected = Sampler(size, "cpu")(logits.clone(), others or states)
    actual = TritonSampler(size, DEVICE)(logits.to(DEVICE), states)
    assert differences(expected, actual) == []
    assert actual.errors == expected.errors
    for a, b in zip(actual.logprobs, expected.logprobs, strict=True):
        assert (a and a.top_ids) == (b and b.top_ids)
    return actual


@pytest.mark.parametrize(
    ("size", "scale"),
    [
        (NUM_TOKENS, 6.0),
        pytest.param(4096, 1.0, marks=pytest.mark.nightly),
        pytest.param(20_011, 1.0, marks=pytest.mark.nightly),
        pytest.param(20_011, 6.0, marks=pytest.mark.nightly),
    ],
)
def test_a_batch_of_all_kinds(size: int, scale: float) -> None:
    states, others = many_kinds(), many_kinds()
    logits = random_logits(len(states), size, scale=scale, seed=size)
    result = assert_same(logits, states, others)
    assert result.errors == {}


@pytest.mark.parametrize("size", [16_384, 16_385, pytest.param(70_000, marks=pytest.mark.nightly)])
def test_trees_of_two_and_three_levels(size: int) -> None:
    states = check_states()[1:6:2]
    assert_same(random_logits(len(states), size, scale=1.5), states)


def test_the_smallest_and_a_too_large_vocabulary() -> None:
    assert_same(torch.tensor([[0.5], [0.1]]), [state_of(top_p=0.9), state_of(top_logprobs=1)])
    with pytest.raises(ValueError, match="too large"):
        TritonSampler(80 * 4096, DEVICE)


@settings(max_examples=NUM_EXAMPLES)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 1e-30, 0.3, 1.0, 2.0]),
            st.sampled_from([0, 1, 2, 7, 300, 699, 700, 10**6]),
            st.sampled_from([0.0, 1e-9, 0.1, 1.0]),
            st.sampled_from([0.0, 1e-9, 0.5, 0.9, 0.9999, 1 - 2.0**-53, 1.0]),
            st.sampled_from([None, 0, 3]),
            st.sampled_from([0.0, 0.1, 1.0, 4.0, 1e30]),
        ),
        min_size=1,
        max_size=2,
    ),
    st.integers(0, 2**31),
)
def test_all_combinations(
    rows: list[tuple[float, int, float, float, int | None, float]], seed: int
) -> None:
    states = [
        state_of(seed + i, temperature=t, top_k=k, min_p=min_p, top_p=top_p, top_logprobs=num_tops)
        for i, (t, k, min_p, top_p, num_tops, _) in enumerate(rows)
    ]
    logits = random_logits(len(rows), seed=seed % 1000, scale=1.0)
    logits *= torch.tensor([row[-1] for row in rows]).unsqueeze(1)
    expected = Sampler(NUM_TOKENS, "cpu")(logits.clone(), states)
    actual = TritonSampler(NUM_TOKENS, DEVICE)(logits.to(DEVICE), states)
    assert actual.errors == expected.errors
    assert actual.token_ids == expected.token_ids
    assert differences(expected, actual) == []


@settings(max_examples=NUM_EXAMPLES)
@given(
    st.lists(st.sampled_from([-3.0, -1.0, 0.0, 2.0, 2.25, -math.inf]), min_size=3, max_size=20),
    st.integers(0, 20),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    st.integers(0, 1000),
)
def test_ties_are_kept_together(
    values: list[float], k: int, min_p: float, top_p: float, seed: int
) -> None:
    """The token drawn is one that the definition keeps, and that `Sampler` draws."""
    logits = torch.tensor([[3.0, *values]])
    state = state_of(seed, top_k=k, min_p=min_p, top_p=top_p)
    size = logits.shape[1]
    expected = Sampler(size, "cpu")(logits.clone(), [state])
    assert TritonSampler(size, DEVICE)(logits.to(DEVICE), [state]) == expected


def test_half_of_the_mass_of_equal_tokens_is_all_of_them() -> None:
    logits = torch.zeros(9, 512)
    states = [state_of(i, top_p=0.5) for i in range(9)]
    result = assert_same(logits, states)
    assert max(result.token_ids) > 256


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 9}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_row_fails_alone(params: dict[str, object], bad: float) -> None:
    logits = random_logits(3)
    logits[1, 600] = bad
    result = assert_same(logits, [state_of(i, top_logprobs=1, **params) for i in range(3)])
    assert result.errors == {1: "the model's logits are not finite"}


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"min_p": 0.1}, {"top_p": 0.5}])
def test_a_row_with_nothing_allowed_fails_alone(params: dict[str, object]) -> None:
    states = [state_of(1, **params), state_of(2, **params)]
    states[1].constraint = Allow(set())
    assert assert_same(random_logits(2), states).errors == {1: "no token is allowed"}


def test_logprobs_are_of_the_logits_before_the_edits() -> None:
    state = state_of(top_logprobs=3, logit_bias={7: 100.0})
    other = state_of(top_logprobs=None, temperature=0.0, logit_bias=BIAS)
    result = assert_same(random_logits(3), [other, state, state_of(top_logprobs=0)])
    assert result.token_ids[1] == 7


def test_logprobs_of_few_tokens_and_of_ties() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf, 1.0]])
    entry = TritonSampler(4, DEVICE)(logits.to(DEVICE), [state_of(top_logprobs=20)]).logprobs[0]
    assert entry is not None
    assert entry.top_ids == (1, 3, 0)  # token 2 cannot occur


def test_other_inputs() -> None:
    sampler = TritonSampler(NUM_TOKENS, DEVICE)
    assert sampler(torch.empty(0, NUM_TOKENS, device=DEVICE), []).token_ids == []
    with pytest.raises(ValueError, match="1 rows of 700"):
        sampler(torch.empty(1, 5, device=DEVICE), [state_of()])
    logits = random_logits(3).to(DEVICE)
    states = [state_of(temperature=0.0), state_of(3)]
    expected = sampler(logits[:2].clone(), states).token_ids
    strided = torch.cat([logits, logits], 1)[:2, :NUM_TOKENS]
    assert sampler(strided, states).token_ids == expected
    unaligned = torch.cat([logits.new_zeros(1), logits.flatten()])[1:].view(3, -1)[:2]
    assert unaligned.data_ptr() % 16
    assert sampler(unaligned, states).token_ids == expected
    rounded = logits[:2].bfloat16()
    assert sampler(rounded, states).token_ids == sampler(rounded.float(), states).token_ids


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = torch.full((3, NUM_TOKENS), -5.0)
    logits[0, [8, 9, 650]] = 3.0
    logits[1, [4]], logits[1, [5]] = -0.0, 0.0
    logits[2, 3] = -math.inf
    states = [state_of(temperature=0.0), state_of(top_k=1), state_of(temperature=0.0, top_p=0.5)]
    assert assert_same(logits, states).token_ids == [8, 4, 0]


@pytest.mark.parametrize("params", [{}, {"temperature": 0.8, "top_k": 7, "top_p": 0.8}])
def test_each_token_takes_its_share_of_the_variates(
    params: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evenly spaced variates draw each token as often as float64 says, within two."""
    num_draws = 1000 if DEVICE.type == "cuda" else 24
    variates = (np.arange(num_draws) + 0.5) / num_draws
    monkeypatch.setattr(triton_records, "uniform_variates", lambda _: variates)
    logits = random_logits(1, 30)
    expected = distribution(logits[0].numpy(), state_of(**params)) * num_draws
    rows = logits.expand(num_draws, -1).contiguous().to(DEVICE)
    token_ids = TritonSampler(30, DEVICE)(rows, [state_of(**params)] * num_draws).token_ids
    counts = np.bincount(token_ids, minlength=30)
    assert np.abs(counts - expected).max() <= 2
    assert counts[expected == 0].sum() == 0


def test_a_row_has_the_same_bits_in_any_batch() -> None:
    sampler = TritonSampler(NUM_TOKENS, DEVICE)
    states = check_states()
    logits = random_logits(len(states), scale=1.0).to(DEVICE)
    together = sampler(logits.clone(), states)
    assert together.errors == {}
    for rows in ([0], [3], [6, 1, 2, 3, 0]):
        result = sampler(logits[rows].clone(), [states[i] for i in rows])
        assert result.token_ids == [together.token_ids[i] for i in rows]
        assert result.logprobs == [together.logprobs[i] for i in rows]


@triton.jit
def weights_kernel(logits, scale, weights, vocab_size, width, block: tl.constexpr):
    """Store the weights float32[16, width] of a row, as the draw loads them."""
    columns = tl.program_id(0) * block + tl.arange(0, block)
    peak, temperature = tl.load(scale), tl.load(scale + 1)
    tile = load_weights(logits, columns, width, vocab_size, peak, temperature, 0.0)
    tl.store(weights + tl.arange(0, 16)[:, None] * width + columns[None, :], tile)


@pytest.mark.parametrize("size", [NUM_TOKENS, 16_385])
def test_sums_have_the_order_of_the_tree(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the weights of the kernels, the levels that they store have the bits of `sum_tree`."""
    levels = []
    launch = triton_sampler.kernels.choose_kernel

    class Recorder:
        def __getitem__(self, grid: tuple[int, int]):  # type: ignore[no-untyped-def]
            def run(*args, **settings):  # type: ignore[no-untyped-def]
                launch[grid](*args, **settings)
                levels.extend(args[2:4])

            return run

    monkeypatch.setattr(triton_sampler.kernels, "choose_kernel", Recorder())
    logits = random_logits(1, size, scale=1.0).to(DEVICE)
    TritonSampler(size, DEVICE)(logits, [state_of(1)])
    width = padded_width(size) // 16
    weights = torch.empty(1, 16 * width, device=DEVICE)
    scale = torch.stack([logits.max(), torch.ones_like(logits.max())])
    weights_kernel[(width // 256,)](logits, scale, weights, size, width, 256)
    expected = sum_tree(weights.cpu())
    assert torch.equal(levels[0][:width].cpu(), expected[1][0])
    if len(expected) == 4:  # a level is stored besides the roots
        assert torch.equal(levels[1].cpu(), expected[2][0])


LAUNCHES = {
    "greedy": ([{"temperature": 0.0}], ["peak"]),
    "plain": ([{}, {"min_p": 0.1}, {"top_k": 1}], ["peak", "choose"]),
    "top_k": (
        [{"top_k": 20, "top_p": 0.9}],
        ["peak", "tally", "refine", "gather", "threshold", "choose"],
    ),
    "all": (
        [{"top_p": 0.9, "min_p": 0.1}, {"temperature": 0.0}, {}],
        ["peak", "tally", "refine", "gather", "threshold", "choose"],
    ),
    "logprobs": ([{"temperature": 0.0, "top_logprobs": 5}], ["peak", "choose", "tops"]),
}


@pytest.mark.skipif(DEVICE.type == "cuda", reason="counts kernels in the interpreter")
@pytest.mark.parametrize("kind", LAUNCHES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_launches_few_kernels(
    kind: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain PyTorch launches 148 at temperature 1, and 300 with top_p and top_k."""
    params, names = LAUNCHES[kind]
    assert launches_of([state_of(i, **p) for i in range(batch) for p in params], monkeypatch) == [
        f"{name}_kernel" for name in names
    ]


@pytest.mark.skipif(DEVICE.type == "cuda", reason="counts kernels in the interpreter")
def test_a_small_top_k_takes_no_tally(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest logits of the chunks bound it, if there are as many chunks."""
    states = [state_of(top_k=k, top_p=0.9) for k in (2, 3)]
    kernels = [f"{name}_kernel" for name in ("peak", "gather", "threshold", "choose")]
    assert launches_of(states, monkeypatch, size=3 * 4096) == kernels


def launches_of(
    states: list[SamplingState], monkeypatch: pytest.MonkeyPatch, size: int = NUM_TOKENS
) -> list[str]:
    """Return the names of the kernels that a pass launches, each only once."""
    logits = random_logits(len(states), size)
    with counted_launches(monkeypatch) as launches:
        TritonSampler(size, DEVICE).launch(logits, states)
    kernels = [name for name in launches if name.endswith("_kernel")]
    assert set(launches) - set(kernels) <= {"zeros", "lift_fresh"}, launches  # the host's
    assert all(launches[name] == 1 for name in kernels)
    return kernels
