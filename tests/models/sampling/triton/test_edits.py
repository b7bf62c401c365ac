"""The kernels that edit logits, against `edits.edit_rows` on the host."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from stonechat_models.errors import GrammarError
from stonechat_models.sampling.edits import edit_rows
from stonechat_models.sampling.state import SamplingState
from stonechat_models.sampling.triton.edits import edit_logits
from stonechat_models.types import SamplingParams
from tests.models.launches import counted_launches
from tests.models.sampling.test_edits import Allow, Broken
from tests.models.sampling_reference import edited

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_TOKENS = 77


def random_logits(num_rows: int, size: int = NUM_TOKENS) -> torch.Tensor:
    return torch.randn(num_rows, size, generator=torch.Generator().manual_seed(2)) * 3


def state_of(output: tuple[int, ...] = (), **params: object) -> SamplingState:
    state = SamplingState(SamplingParams(**params), 0, 0, [3, 70, 70, 999, -1])  # type: ignore[arg-type]
    for token in output:
        state.append(token)
    return state


def assert_same(make: Callable[[], list[SamplingState]], size: int = NUM_TOKENS) -> None:
    """The kernels give the bits of numpy."""
    expected = random_logits(len(make()), size)
    actual = expected.to(DEVICE, copy=True)
    assert edit_logits(actual, make()) == edit_rows(expected.numpy(), make())
    assert torch.equal(actual.cpu(), expected)


ROWS: list[dict[str, object]] = [
    {},
    {"logit_bias": {0: 1.5, 76: -100.0, 3: 0.25}},
    {"frequency_penalty": 0.7},
    {"presence_penalty": -1.3},
    {"repetition_penalty": 1.7},
    {
        "logit_bias": {1: 3.0, 5: -2.0, 70: 0.1},
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "repetition_penalty": 0.6,
    },
]


def all_edits() -> list[SamplingState]:
    states = [state_of(output, **params) for params in ROWS for output in ((), (1, 1, 3, 5, 70, 1))]
    states[0].suppressed_ids = (0, 76, 500)
    states[-1].suppressed_ids = (1, 70)
    states[-1].constraint = Allow({1, 5, 31, 32, 76})
    states[4].constraint = Allow(None)
    states[6].constraint = Allow(set())
    return states


@pytest.mark.parametrize("size", [NUM_TOKENS, 5000])
def test_all_edits_have_the_bits_of_the_cpu(size: int) -> None:
    assert_same(all_edits, size)


def test_more_tokens_than_a_tile() -> None:
    bias = {token: token / 100 for token in range(1300)}
    output = tuple(range(600, 1800))
    assert_same(lambda: [state_of(output, logit_bias=bias, repetition_penalty=1.2)], 2000)


@settings(max_examples=20)
@given(
    st.dictionaries(st.integers(0, 9), st.sampled_from([-100.0, -0.3, 0.0, 7.5])),
    st.lists(st.integers(0, 9), max_size=12),
    st.sampled_from([0.0, -2.0, 0.1]),
    st.sampled_from([0.0, 1.9]),
    st.sampled_from([0.5, 1.0, 1.1]),
    st.sets(st.integers(0, 12), max_size=3),
)
def test_edits_of_the_same_token_keep_their_order(
    bias: dict[int, float],
    output: list[int],
    frequency: float,
    presence: float,
    repetition: float,
    suppressed: set[int],
) -> None:
    def states() -> list[SamplingState]:
        state = state_of(
            tuple(output),
            logit_bias=bias,
            frequency_penalty=frequency,
            presence_penalty=presence,
            repetition_penalty=repetition,
        )
        state.prompt_token_ids = [1, 3, 5]
        state.suppressed_ids = tuple(sorted(suppressed))
        return [state]

    assert_same(states, 10)
    logits = random_logits(1, 10)
    expected = edited(logits[0].numpy(), states()[0])
    actual = logits.to(DEVICE)
    edit_logits(actual, states())
    np.testing.assert_allclose(actual[0].cpu().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_errors_concern_their_row_only() -> None:
    def states() -> list[SamplingState]:
        result = [
            state_of(logit_bias={NUM_TOKENS: 1.0}),
            state_of(),
            state_of(logit_bias={1: 1.0}),
            state_of(),
        ]
        result[0].constraint = Allow({1})
        result[1].constraint = Broken(RuntimeError("no such state"))
        result[3].constraint = Broken(GrammarError("too many states"))
        return result

    assert_same(states)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="counts kernels in the interpreter")
def test_all_edits_are_two_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    states, logits = all_edits(), random_logits(len(ROWS) * 2)
    edit_logits(logits.clone(), states)  # makes the tensors of the requests
    with counted_launches(monkeypatch) as launches:
        edit_logits(logits, states)
    kernels = Counter({n: count for n, count in launches.items() if n.endswith("_kernel")})
    assert kernels == {"edit_kernel": 1, "mask_kernel": 1}
