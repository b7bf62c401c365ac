"""The sampler's Triton kernels on the device, against plain PyTorch there and on the CPU."""

import pytest
import torch

from stonechat_models.sampling.choose import check_states, choose_sampler, differences
from stonechat_models.sampling.sampler import Sampler
from stonechat_models.sampling.state import SamplingState
from stonechat_models.sampling.triton.sampler import TritonSampler
from stonechat_models.types import SamplingParams

VOCAB_SIZES = [700, 32_000, 128_256, 151_936, 262_208]
KINDS = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "cooler": {"temperature": 0.6},
    "top_p": {"top_p": 0.9},
    "wide": {"temperature": 1.5, "top_p": 0.9999},
    "top_k": {"top_k": 50},
    "deep": {"top_k": 5000, "top_p": 0.8},
    "all": {"temperature": 0.6, "top_k": 20, "min_p": 0.01, "top_p": 0.95},
    "logprobs": {"top_logprobs": 20, "top_p": 0.9},
}


def states_of(params: dict[str, object], num_rows: int, first: int = 0) -> list[SamplingState]:
    return [
        SamplingState(SamplingParams(**params), first + i, i % 3, [])  # type: ignore[arg-type]
        for i in range(num_rows)
    ]


def random_rows(
    num_rows: int, vocab_size: int, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> torch.Tensor:
    """Rows of several scales, some peaked as those of trained models, some flat."""
    generator = torch.Generator(device).manual_seed(seed)
    rows = torch.randn(num_rows, vocab_size, generator=generator, device=device)
    scales = torch.tensor([0.5, 1.2, 3.0, 8.0], device=device)
    rows *= scales[torch.arange(num_rows, device=device) % 4].unsqueeze(1)
    return rows.to(dtype).float()  # ties, if the dtype is bfloat16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_tokens_are_those_of_pytorch(kind: str, vocab_size: int, device: torch.device) -> None:
    """On the device, for batches of 1, 7 and 256 rows.

    Exponentials may differ in the last bit, so one row in a thousand may differ.
    """
    num_different = num_rows = 0
    for batch, dtype in ((1, torch.float32), (7, torch.bfloat16), (256, torch.float32)):
        states = states_of(KINDS[kind], batch, first=batch)
        logits = random_rows(batch, vocab_size, device, dtype, seed=batch)
        expected = Sampler(vocab_size, device)(logits.clone(), states)
        actual = TritonSampler(vocab_size, device)(logits.clone(), states)
        assert actual.errors == {}
        num_different += len(differences(expected, actual))
        num_rows += batch
    assert num_different <= 1, f"{num_different} of {num_rows} rows differ"


def test_thousands_of_rows_have_the_tokens_of_the_cpu(device: torch.device) -> None:
    vocab_size, num_different = 32_000, 0
    kinds = list(KINDS.values())
    for seed in range(8):
        states = [
            SamplingState(SamplingParams(**kinds[i % len(kinds)]), seed * 1000 + i, 0, [])
            for i in range(256)
        ]
        logits = random_rows(256, vocab_size, device, torch.float32, seed)
        expected = Sampler(vocab_size, "cpu")(logits.cpu(), states)
        actual = TritonSampler(vocab_size, device)(logits, states)
        num_different += len(differences(expected, actual))
    assert num_different <= 2, f"{num_different} of 2048 rows differ"


def test_a_row_is_the_same_in_any_batch(device: torch.device) -> None:
    vocab_size = 128_256
    sampler = TritonSampler(vocab_size, device)
    states = [s for _ in range(36) for s in check_states()]
    logits = random_rows(len(states), vocab_size, device, torch.float32)
    together = sampler(logits.clone(), states)
    for row in range(0, len(states), 5):
        alone = sampler(logits[row : row + 1].clone(), [states[row]])
        assert alone.token_ids == [together.token_ids[row]]
        assert alone.logprobs == [together.logprobs[row]]


def test_bad_rows_fail_alone(device: torch.device) -> None:
    vocab_size = 32_000
    states = states_of({"top_p": 0.9, "top_logprobs": 2}, 5)
    logits = random_rows(5, vocab_size, device, torch.float32)
    logits[1, 600] = float("nan")
    logits[2, 31_999] = float("inf")
    logits[3] = float("-inf")
    result = TritonSampler(vocab_size, device)(logits, states)
    assert sorted(result.errors) == [1, 2, 3]
    assert all(0 <= result.token_ids[row] < vocab_size for row in (0, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_the_device(kind: str, device: torch.device) -> None:
    vocab_size = 32_000
    sampler = TritonSampler(vocab_size, device)
    states = states_of(KINDS[kind], 3)
    logits = random_rows(3, vocab_size, device, torch.float32)
    sampler(logits.clone(), states)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampling = sampler.launch(logits, states)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(0 <= token < vocab_size for token in sampling.read().token_ids)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_the_kernels_pass_the_check_at_start(vocab_size: int, device: torch.device) -> None:
    lines: list[str] = []
    sampler = choose_sampler(vocab_size, device, progress=lines.append)
    assert lines == []
    assert isinstance(sampler, TritonSampler)
