from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from stonechat_models.errors import GrammarError
from stonechat_models.sampling.edits import edit_rows
from stonechat_models.sampling.state import RequestTensors, SamplingState
from stonechat_models.types import SamplingParams
from tests.models.sampling_reference import edited

NUM_TOKENS = 77


class Allow:
    """A constraint that allows some tokens, or all (None)."""

    def __init__(self, tokens: set[int] | None) -> None:
        self.tokens = tokens
        self.is_finished = False

    def fill_bitmask(self, row: npt.NDArray[np.int32]) -> bool:
        if self.tokens is None:
            return False
        words = np.zeros(len(row), dtype=np.uint32)
        for token in self.tokens:
            words[token // 32] |= np.uint32(1 << (token % 32))
        row[:] = words.view(np.int32)
        return True

    def accept(self, token_id: int) -> None: ...


class Broken(Allow):
    def __init__(self, error: Exception) -> None:
        super().__init__(None)
        self.error = error

    def fill_bitmask(self, row: npt.NDArray[np.int32]) -> bool:
        row.fill(-1)
        raise self.error


def state_of(output: list[int] | None = None, **params: object) -> SamplingState:
    state = SamplingState(SamplingParams(**params), 0, 0, [3, 3, 70, 10**6])  # type: ignore[arg-type]
    for token in output or []:
        state.append(token)
    return state


def random_logits(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, NUM_TOKENS, generator=torch.Generator().manual_seed(1)) * 4


def test_each_row_gets_its_own_edits_in_order() -> None:
    output = [5, 5, 5, 6, 70]
    states = [
        state_of(),
        state_of(output),
        state_of(output, logit_bias={0: 100.0, 5: -3.5, 76: -100.0}),
        state_of(output, frequency_penalty=0.7),
        state_of(output, presence_penalty=-1.5),
        state_of(output, frequency_penalty=-2.0, presence_penalty=1.0, logit_bias={5: 1.25}),
        state_of(output, repetition_penalty=1.3),
        state_of(repetition_penalty=0.5),
        state_of(output, repetition_penalty=2.0, presence_penalty=2.0, logit_bias={6: 2.0}),
        state_of(output),
    ]
    states[9].suppressed_ids = (2, 5, 10**6)
    logits = random_logits(len(states))
    original = logits.clone()
    assert edit_rows(logits.numpy(), states) == {}
    for row, state in enumerate(states):
        state.prompt_token_ids = [3, 70]
        expected = edited(original[row].numpy(), state)
        np.testing.assert_allclose(logits[row].numpy(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits[:2], original[:2])


def test_penalties_follow_the_growing_output() -> None:
    state = state_of(repetition_penalty=1.5, frequency_penalty=1.0)
    tokens = (4, 4, 9)
    for num_tokens, token in enumerate(tokens):
        logits = random_logits(1)
        expected_state = state_of(
            tokens[:num_tokens], repetition_penalty=1.5, frequency_penalty=1.0
        )
        expected_state.prompt_token_ids = [3, 70]
        expected = edited(logits[0].numpy(), expected_state)
        edit_rows(logits.numpy(), [state])
        np.testing.assert_allclose(logits[0].numpy(), expected, rtol=1e-5, atol=1e-5)
        state.append(token)


@pytest.mark.parametrize("allowed", [{0}, {31, 32, 76}, set(range(NUM_TOKENS)), set()])
def test_a_constraint_forbids_the_rest(allowed: set[int]) -> None:
    states = [state_of(), state_of(), state_of(), state_of()]
    states[1].constraint = Allow(None)
    states[2].constraint = Allow(allowed)
    states[3].constraint = Allow({1, 2})
    logits = random_logits(4)
    original = logits.clone()
    assert edit_rows(logits.numpy(), states) == {}
    assert torch.equal(logits[:2], original[:2])
    for row, tokens in ((2, allowed), (3, {1, 2})):
        finite_ids = set(logits[row].isfinite().nonzero().flatten().tolist())
        assert finite_ids == tokens
        allowed_ids = sorted(tokens)
        assert torch.equal(logits[row, allowed_ids], original[row, allowed_ids])


def test_errors_concern_their_row_only() -> None:
    states = [
        state_of(logit_bias={NUM_TOKENS: 1.0}),
        state_of(),
        state_of(logit_bias={1: 1.0}),
        state_of(),
    ]
    states[1].constraint = Broken(RuntimeError("no such state"))
    states[3].constraint = Broken(GrammarError("too many states"))
    logits = random_logits(4)
    original = logits.clone()
    errors = edit_rows(logits.numpy(), states)
    assert errors == {
        0: "logit_bias names token 77; there are 77 tokens",
        1: "the constraint failed: no such state",
        3: "the grammar cannot be followed further: too many states",
    }
    assert logits[2, 1] == original[2, 1] + 1.0


class CountedReads(dict[int, float]):
    """A mapping that counts how often its entries are read from the first to the last."""

    num_reads = 0

    def __iter__(self) -> Iterator[int]:
        self.num_reads += 1
        return super().__iter__()

    def values(self) -> Any:
        self.num_reads += 1
        return super().values()

    def items(self) -> Any:
        self.num_reads += 1
        return super().items()


def test_a_large_bias_is_read_once_per_request() -> None:
    """A step must not run Python code for every entry of every choice."""
    bias = CountedReads({token: token / 1000 for token in range(40_000)})
    params = SamplingParams(n=64, logit_bias=bias)
    bias.num_reads = 0
    tensors = RequestTensors()
    states = [SamplingState(params, 0, index, [1], tensors=tensors) for index in range(64)]
    logits = torch.randn(64, 40_000)
    expected = logits + torch.arange(40_000) / 1000
    assert edit_rows(logits.numpy(), states) == {}
    torch.testing.assert_close(logits, expected)
    assert 0 < bias.num_reads <= 3  # to check the ids, and to copy ids and amounts
    bias.num_reads = 0
    edit_rows(logits.numpy(), states)
    assert bias.num_reads == 0


@pytest.mark.parametrize(
    ("params", "output", "constraint"),
    [
        ({}, [5], None),
        ({"temperature": 0.5, "top_p": 0.9, "top_logprobs": 3}, [5], None),
        ({"logit_bias": {1: 1.0}}, [], None),
        ({"frequency_penalty": 0.1}, [5], None),
        ({"presence_penalty": 0.1}, [5], None),
        ({"repetition_penalty": 1.1}, [], None),
        ({"min_tokens": 3}, [5], None),
        ({}, [], Allow({1})),
    ],
)
def test_a_state_knows_whether_it_needs_edits(
    params: dict[str, object], output: list[int], constraint: Allow | None
) -> None:
    """Samplers do not edit rows that need none."""
    state = state_of(**params)
    if "min_tokens" in params:
        state.suppressed_ids = (2,)
    for token in output:
        state.append(token)
    state.constraint = constraint
    state.prompt_token_ids = [3, 70]
    original = random_logits(1)[0].numpy()
    changes = constraint is not None or not np.array_equal(edited(original, state), original)
    assert state.needs_edits == changes
