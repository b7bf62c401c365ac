"""Weights that are quantised in groups of 32 along k, in plain PyTorch. A group shares a scale.

The numbers are the same as in `native/csrc/pack.h`. int8 stores w = d * q with q in [-127, 127].
int4 stores w = d * q + m with q in [0, 15]. d and m are in half precision.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

Bits = Literal["int8", "int4"]
GROUP = 32
RANGE_STEPS = 5
"""int4 tries this many lower ends, and this many upper ends, of a group's range."""
RANGE_STEP = 0.03
"""Distance between two of these ends, as a fraction of the range."""


@dataclass(frozen=True, slots=True)
class GroupwiseWeight:
    """A matrix [n, k] in groups g: quantised int8[n, g, 32], scales and lows float16[n, g].

    int8 has no lows.
    """

    quantised: torch.Tensor
    scales: torch.Tensor
    lows: torch.Tensor | None

    @property
    def num_bytes(self) -> int:
        tensors = [self.quantised, self.scales, *([] if self.lows is None else [self.lows])]
        return sum(t.numel() * t.element_size() for t in tensors)


def pad_to_groups(values: torch.Tensor) -> torch.Tensor:
    """Pad [..., k] with zeros to a multiple of 32. The zeros do not change any product."""
    padding = -values.shape[-1] % GROUP
    return F.pad(values, (0, padding)) if padding else values


def quantise(weight: torch.Tensor, bits: Bits) -> GroupwiseWeight:
    """Quantise the rows of weight[n, k]; k is a multiple of 32."""
    groups = weight.float().reshape(weight.shape[0], -1, GROUP)
    return _quantise_int8(groups) if bits == "int8" else _quantise_int4(groups)


def _inverse(scales: torch.Tensor) -> torch.Tensor:
    return torch.where(scales > 0, 1.0 / scales.float(), 0.0)[..., None]


def _quantise_int8(groups: torch.Tensor) -> GroupwiseWeight:
    scales = (groups.abs().amax(dim=-1) / 127.0).half()
    quantised = (groups * _inverse(scales)).round().clamp(-127, 127)
    return GroupwiseWeight(quantised.to(torch.int8), scales, None)


def _quantise_int4(groups: torch.Tensor) -> GroupwiseWeight:
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)
    best_error = torch.full_like(low, float("inf"))
    scales, lows = torch.zeros_like(low).half(), torch.zeros_like(low).half()
    steps = 1 if groups.is_meta else RANGE_STEPS  # on the meta device only the shapes count
    for i in range(steps):
        for j in range(steps):
            start = low + (high - low) * (RANGE_STEP * i)
            end = high - (high - low) * (RANGE_STEP * j)
            d, m = ((end - start) / 15.0).half(), start.half()
            quantised = _round_to_int4(groups, d, m)
            difference = groups - (d.float()[..., None] * quantised + m.float()[..., None])
            error = difference.square().sum(dim=-1)
            is_better = error < best_error
            best_error = torch.where(is_better, error, best_error)
            scales, lows = torch.where(is_better, d, scales), torch.where(is_better, m, lows)
    return GroupwiseWeight(_round_to_int4(groups, scales, lows).to(torch.int8), scales, lows)


def _round_to_int4(groups: torch.Tensor, d: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return ((groups - m.float()[..., None]) * _inverse(d)).round().clamp(0, 15)


def product(x: torch.Tensor, w: GroupwiseWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """Return x[rows, k] w^T + bias, float32[rows, n]. x is quantised to int8 in the same groups.

    The products of a group are integers, and their sums stay below 2**24. So they are exact in
    float32 in any order. The groups are then added one by one, as the kernel's fused multiply-adds
    do: the float64 sums have exact products and one rounding. So a row has the same bits in any
    batch.
    """
    groups = x.reshape(x.shape[0], x.shape[1] // GROUP, GROUP)
    top = groups.abs().amax(dim=-1, keepdim=True)
    q = (groups * torch.where(top > 0, 127.0 / top, 0.0)).round()
    scale = top / 127.0
    sums = scale * q.sum(dim=-1, keepdim=True)
    total = x.new_zeros(x.shape[0], w.quantised.shape[0])
    if bias is not None:
        total += bias
    for g in range(groups.shape[1]):
        dots = q[:, g] @ w.quantised[:, g].float().T
        factor = scale[:, g] * w.scales[:, g].float()
        total = (dots.double() * factor.double() + total.double()).float()
        if w.lows is not None:
            lows = w.lows[:, g].double()
            total = (lows * sums[:, g].double() + total.double()).float()
    return total
