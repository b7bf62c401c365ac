"""Chooses the sampler of a device: the Triton kernels, if they pass a parity check there."""

import logging
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from stonechat_models.errors import ModelLoadError
from stonechat_models.sampling.sampler import Sampler
from stonechat_models.sampling.state import SampledTokens, SamplerLike, SamplingState
from stonechat_models.types import SamplingParams, TokenLogprobs

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Of log-probabilities."""


def choose_sampler(
    vocab_size: int,
    device: torch.device,
    why_no_triton: Callable[[torch.device], str | None] = lambda _: None,
    progress: Callable[[str], None] = lambda _: None,
    dtype: torch.dtype = torch.float32,
) -> SamplerLike:
    """Return the Triton sampler on CUDA, and `Sampler` elsewhere. `dtype`: that of the logits.

    If its kernels fail or choose other tokens for logits of `dtype`, it converts them to float32.
    If they do so then too, or Triton cannot run there (`why_no_triton`), `Sampler` is returned, and
    `progress` receives a line with the reason. Raises `ModelLoadError` if the device no longer
    works after that.
    """
    sampler = Sampler(vocab_size, device)
    if device.type != "cuda":
        return sampler
    reason = why_no_triton(device)
    for kind in dict.fromkeys((dtype, torch.float32)) if reason is None else ():
        try:
            return checked_sampler(vocab_size, device, sampler, kind)
        except Exception as error:
            logger.warning("the sampler's Triton kernels failed for %s", kind, exc_info=error)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            _check_device(device)
    progress(f"sampling in plain PyTorch: {reason}")
    return sampler


def _check_device(device: torch.device) -> None:
    """Raise `ModelLoadError` if the device fails: after an illegal access nothing works there."""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise ModelLoadError(
            f"{device} failed while the sampler's kernels were checked ({error})"
        ) from error


def checked_sampler(
    vocab_size: int,
    device: torch.device,
    reference: SamplerLike,
    dtype: torch.dtype = torch.float32,
) -> SamplerLike:
    """Return the Triton sampler. Raise `RuntimeError` if it differs from `reference`. For `dtype`
    float32, it converts all logits to that.

    The check also compiles all kernels, so that no request waits for that: for logits of `dtype`,
    and for float32, in which logits are edited. Sums that differ in the last bit may draw other
    tokens in rare rows, so a difference must occur with two seeds.
    """
    from stonechat_models.sampling.triton.sampler import TritonSampler

    sampler = TritonSampler(vocab_size, device, converts=dtype is torch.float32)
    for seed in (0, 1):
        different = []
        for kind in dict.fromkeys((torch.float32, dtype)):
            states = [s for s in check_states() if kind is torch.float32 or not s.needs_edits]
            logits = check_logits(len(states), vocab_size, seed).to(device, kind)
            expected = reference(logits.clone(), states)
            for _ in range(2):  # the first launch differs
                rows = differences(expected, sampler(logits.clone(), states))
                different += [states[row].params for row in rows]
        if not different:
            return sampler
    raise RuntimeError(f"the Triton kernels differ for {different[0]}")


def check_logits(num_rows: int, vocab_size: int, seed: int) -> torch.Tensor:
    """Float[num_rows, vocab_size] of three scales."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([2.0, 0.5, 8.0])[torch.arange(num_rows) % 3].unsqueeze(1)
    return torch.randn(num_rows, vocab_size, generator=generator) * scales


def check_states() -> list[SamplingState]:
    """Rows of all kinds."""
    kinds = [
        SamplingParams(temperature=0.0, top_logprobs=5),
        SamplingParams(),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(temperature=0.6, top_p=0.95, top_k=20, top_logprobs=0),
        SamplingParams(min_p=0.1),
        SamplingParams(top_k=200),
        SamplingParams(top_p=0.999, min_p=1e-4, top_logprobs=20),
        SamplingParams(
            logit_bias={0: 5.0, 1: -100.0},
            frequency_penalty=0.5,
            presence_penalty=0.25,
            repetition_penalty=1.5,
            top_logprobs=1,
        ),
        SamplingParams(temperature=0.0),
    ]
    states = [SamplingState(params, i, 0, [0, 1]) for i, params in enumerate(kinds)]
    states[-2].output_counts, states[-2].suppressed_ids = {1: 2, 2: 1}, (3,)
    states[-1].constraint = EveryOther()
    return states


class EveryOther:
    """A constraint that allows every other token."""

    is_finished = False

    def fill_bitmask(self, row: npt.NDArray[np.int32]) -> bool:
        """See `TokenConstraint`."""
        row.fill(0x55555555)
        return True

    def accept(self, token_id: int) -> None:
        """See `TokenConstraint`."""

    def fork(self) -> "EveryOther":
        """See `TokenConstraint`."""
        return self


def differences(expected: SampledTokens, actual: SampledTokens) -> list[int]:
    """Return the rows whose tokens differ or whose log-probabilities differ by `TOLERANCE`."""
    return [
        row
        for row, token_id in enumerate(expected.token_ids)
        if actual.token_ids[row] != token_id
        or expected.errors.get(row) != actual.errors.get(row)
        or not _agree(expected.logprobs[row], actual.logprobs[row])
    ]


def _agree(expected: TokenLogprobs | None, actual: TokenLogprobs | None) -> bool:
    """Compare values only: the order of ties is free."""
    if expected is None or actual is None:
        return expected is actual
    values = [(e.logprob, *e.top_logprobs) for e in (expected, actual)]
    return len(values[0]) == len(values[1]) and all(
        a == b or math.isclose(a, b, abs_tol=TOLERANCE) for a, b in zip(*values, strict=True)
    )
