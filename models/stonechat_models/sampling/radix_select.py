"""Weighted selection: finds the largest weight w such that the entries >= w amount to a target.

Weights are float32 in [0, 1]. Their bit patterns have the same order as their values, so groups of
bits serve as radix digits. On a GPU three rounds of ten bits find the answer with integer sums
only, without waiting for the device. On the host one round is enough: it then sorts the few entries
of one bin.
"""

import numpy as np
import torch

_FIXED_POINT = 2.0**40
_DIGIT_BITS = 10
_DIGITS = 1 << _DIGIT_BITS
_TOP_SHIFT = 2 * _DIGIT_BITS


def select_share(weights: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return float32[R]: the largest w such that the entries >= w hold `share` (float64[R]).

    `share` is a share of the row's mass. Masses are summed in fixed point, 40 bits after the point,
    so the order of the additions does not matter.
    """
    amounts = (weights * _FIXED_POINT).long()
    total = amounts.sum(1)
    target = torch.minimum((share * total.double()).ceil().long(), total).clamp_(min=1)
    return select(weights, amounts, target)


def select(
    weights: torch.Tensor, amounts: torch.Tensor | None, target: torch.Tensor
) -> torch.Tensor:
    """Return float32[R]: the largest w such that entries >= w amount to `target` (int64[R]).

    `amounts` is int64[R, n]. None: each entry counts as one.
    """
    keys = weights.view(torch.int32)
    prefix = torch.zeros_like(target, dtype=torch.int32)
    live_amounts = torch.ones_like(keys, dtype=torch.int64) if amounts is None else amounts
    for shift in (_TOP_SHIFT, _DIGIT_BITS, 0):
        if shift < _TOP_SHIFT:
            live_amounts = live_amounts * ((keys >> (shift + _DIGIT_BITS)) == prefix.unsqueeze(1))
        digits = ((keys >> shift) & (_DIGITS - 1)).long()
        histogram = torch.zeros(len(target), _DIGITS, dtype=torch.int64, device=weights.device)
        histogram.scatter_add_(1, digits, live_amounts)
        at_least = histogram.flip(1).cumsum(1).flip(1)
        digit = ((at_least >= target.unsqueeze(1)).sum(1) - 1).clamp_(min=0)
        column = digit.unsqueeze(1)
        target = target - (at_least.gather(1, column) - histogram.gather(1, column)).squeeze(1)
        prefix = (prefix << _DIGIT_BITS) | digit.int()
    return prefix.view(torch.float32)


def select_on_host(
    weights: torch.Tensor,
    *,
    share: torch.Tensor | None = None,
    count: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do as `select_share`, or with `count` (int64[R]) as `select`, on CPU tensors.

    Masses are summed in float64, row by row in a fixed order.
    """
    thresholds = torch.empty(len(weights))
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
        rank = int((amounts.cumsum() < target - above).sum())
        thresholds[i] = float(inside[min(rank, len(inside) - 1)])
    return thresholds
