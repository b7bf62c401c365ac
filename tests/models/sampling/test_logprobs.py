"""Log-probabilities of given tokens: exact, in slices, and without waiting for a device."""

import pytest
import torch

from stonechat_models.sampling import logprobs
from stonechat_models.sampling.logprobs import Logprobs
from stonechat_models.sampling.sampler import Sampler
from stonechat_models.sampling.state import SamplingState
from stonechat_models.types import SamplingParams

VOCAB_SIZE = 5000
ROWS = [4, 0, 3, 1, 7]
TOKENS = [17, 4999, 0, 17, 250]
NUM_TOPS = [3, 0, 20, 1, 2]


def random_logits() -> torch.Tensor:
    return torch.randn(8, VOCAB_SIZE, generator=torch.Generator().manual_seed(2)) * 4


@pytest.mark.parametrize("rows_per_slice", [1, 2, 100])
def test_each_row_is_that_of_log_softmax(
    rows_per_slice: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "SLICE_BYTES", 4 * VOCAB_SIZE * rows_per_slice)
    logits = random_logits()
    before = logits.clone()
    entries = Logprobs(logits, ROWS, TOKENS, NUM_TOPS).read()
    assert torch.equal(logits, before)
    expected = torch.log_softmax(logits[ROWS].double(), dim=1)
    for entry, row, token, num_tops in zip(entries, expected, TOKENS, NUM_TOPS, strict=True):
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-5)
        assert entry.rank == int((row > row[token]).sum()) + 1
        assert list(entry.top_ids) == row.topk(num_tops).indices.tolist()
        assert entry.top_logprobs == pytest.approx(row.topk(num_tops).values.tolist(), abs=1e-5)


def test_the_bits_are_those_of_the_sampler() -> None:
    logits = random_logits()
    params = SamplingParams(temperature=0.0, top_logprobs=5)
    states = [SamplingState(params, 0, 0, []) for _ in range(8)]
    chosen = Sampler(VOCAB_SIZE, "cpu")(logits.clone(), states)
    entries = Logprobs(logits, range(8), chosen.token_ids, [5] * 8).read()
    for own, other in zip(entries, chosen.logprobs, strict=True):
        assert other is not None
        assert (own.logprob, own.top_ids, own.top_logprobs) == (
            other.logprob,
            other.top_ids,
            other.top_logprobs,
        )
        assert own.rank == 1


def test_rows_that_are_not_finite_and_tokens_that_cannot_occur() -> None:
    logits = random_logits()
    logits[0, 7], logits[1, 7], logits[2, 7] = float("nan"), float("inf"), float("-inf")
    entries = Logprobs(logits, [0, 1, 2], [7, 7, 7], [0, 0, 0]).read()
    assert entries[0].logprob != entries[0].logprob
    assert entries[1].logprob != entries[1].logprob
    assert entries[2].logprob == float("-inf")
    assert entries[2].rank == VOCAB_SIZE


def test_nothing_waits_for_the_device() -> None:
    """An operation that needs a value on the host raises on the meta device."""
    Logprobs(torch.empty(8, 300, device="meta"), ROWS, [1] * 5, NUM_TOPS)
