"""Weighted selection: the largest weight whose entries at least as large amount to a target.

Weights are float32 in [0, 1], where bits order as values do, so digits of their bits are radix
digits. On a GPU three rounds of ten bits find the answer with integer sums only and without
waiting for the device; on the host one round does, and the few entries of one bin are sorted.
"""

import numpy as np
import torch

_FIXED_POINT = 2.0**40
_DIGIT_BITS = 10
_DIGITS = 1 << _DIGIT_BITS
_TOP_SHIFT = 2 * _DIGIT_BITS


def select_share(weights: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return float32[R]: the largest w whose entries >= w hold `share` (float64[R]) of the mass.

    Masses are summed in fixed point, 40 bits after the point, so that no order of sums matters.
    """
    amounts = (weights * _FIXED_POINT).long()
    total = amounts.sum(1)
    target = torch.minimum((share * total.double()).ceil().long(), total).clamp_(min=1)
    return select(weights, amounts, target)


def select(
    weights: torch.Tensor, amounts: torch.Tensor | None, target: torch.Tensor
) -> torch.Tensor:
    """Return float32[R]: the largest w for which the entries >= w amount to `target` (int64[R]).

    `amounts` is int64[R, n]; None: each entry amounts to one.
    """
    keys = weights.view(torch.int32)
    prefix = torch.zeros_like(target, dtype=torch.int32)
    live = torch.ones_like(keys, dtype=torch.int64) if amounts is None else amounts
    for shift in (_TOP_SHIFT, _DIGIT_BITS, 0):
        if shift < _TOP_SHIFT:
            live = live * ((keys >> (shift + _DIGIT_BITS)) == prefix.unsqueeze(1))
        digits = ((keys >> shift) & (_DIGITS - 1)).long()
        histogram = torch.zeros(len(target), _DIGITS, dtype=torch.int64, device=weights.device)
        histogram.scatter_add_(1, digits, live)
        at_least = histogram.flip(1).cumsum(1).flip(1)
        digit = ((at_least >= target.unsqueeze(1)).sum(1) - 1).clamp_(min=0)
        at = digit.unsqueeze(1)
        target = target - (at_least.gather(1, at) - histogram.gather(1, at)).squeeze(1)
        prefix = (prefix << _DIGIT_BITS) | digit.int()
    return prefix.view(torch.float32)


def select_on_host(
    weights: torch.Tensor,
    *,
    share: torch.Tensor | None = None,
    count: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what `select_share` or, by `count` (int64[R]), `select` does, on CPU tensors.

    Masses are summed in float64, row by row in a fixed order.
    """
    found = torch.empty(len(weights))
    for i, row in enumerate(weights.numpy()):
        digits = row.view(np.int32) >> _TOP_SHIFT
        histogram = np.bincount(digits, None if share is None else row, _DIGITS).astype(np.float64)
        at_least = histogram[::-1].cumsum()[::-1]
        target = 0.0
        if share is not None:
            target = float(share[i]) * at_least[0]
        elif count is not None:
            target = float(count[i])
        digit = max(int((at_least >= target).sum()) - 1, 0)
        above = at_least[digit] - histogram[digit]
        inside = np.sort(row[digits == digit])[::-1]
        amounts = inside.astype(np.float64) if share is not None else np.ones(len(inside))
        at = int((amounts.cumsum() < target - above).sum())
        found[i] = float(inside[min(at, len(inside) - 1)])
    return found
