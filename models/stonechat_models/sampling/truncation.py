"""Truncates distributions by top_k, min_p and top_p, exactly.

A cut is a threshold on a row's weights: tokens with at least that weight are kept. Tokens that tie
with the last kept token are kept too, so the result does not depend on an order of ties.
"""

from dataclasses import dataclass

import numpy as np
import torch

from stonechat_models.sampling.inverse_cdf import FANOUT, fold_max, row_sums

FAST_TOP = 256
"""On CPU, a cut that lies within this many heaviest tokens is computed from them alone."""
_FIXED_POINT = 2.0**40
_BINS, _BIN_SHIFT = 1 << 10, 20


@dataclass(slots=True)
class Cuts:
    """The filters of R rows, float64[R] each, and whether any row uses them."""

    top_k: torch.Tensor
    """0: off."""
    min_p: torch.Tensor
    """0: off."""
    top_p: torch.Tensor
    """1: off."""
    any_top_k: bool
    any_min_p: bool
    any_top_p: bool


def cut_weights(weights: torch.Tensor, cuts: Cuts, *, on_host: bool) -> None:
    """Zero the removed weights in place: by top_k, then min_p, then top_p of the rest.

    `weights` is float32[R, n]. The largest of each row is exactly 1; n is a multiple of
    `ROW_MULTIPLE`. `on_host` selects the algorithms that are fastest on CPU. Without it, nothing
    waits for the device.
    """
    tops = top_values(weights, FAST_TOP)[0] if on_host else None
    if cuts.any_top_k or cuts.any_min_p:
        floor = cuts.min_p.float()
        if cuts.any_top_k:
            floor = torch.maximum(floor, _top_k_threshold(weights, tops, cuts.top_k))
        zero_below(weights, floor)
        if tops is not None:
            zero_below(tops, floor)
    if cuts.any_top_p:
        zero_below(weights, _top_p_threshold(weights, tops, cuts.top_p))


def top_values(rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest values of each row, descending, and their columns, both [R, k].

    It searches groups of 16 columns: only the k groups with the largest maxima can hold them.
    """
    maxima = fold_max(rows)
    num_groups = maxima.shape[1]
    groups = maxima.topk(min(k, num_groups), sorted=False).indices
    steps = torch.arange(0, rows.shape[1], num_groups, device=rows.device)
    columns = (groups.unsqueeze(1) + steps.view(1, FANOUT, 1)).flatten(1)
    values, order = rows.gather(1, columns).topk(k)
    return values, columns.gather(1, order)


def zero_below(weights: torch.Tensor, threshold: torch.Tensor) -> None:
    """Zero, in place, the entries of float32[R, n] that are below their row's threshold [R]."""
    # The mask is float: torch would convert a boolean mask, at five times the cost.
    weights.mul_(torch.ge(weights, threshold.unsqueeze(1), out=torch.empty_like(weights)))


def _heaviest(weights: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """Return float32[R]: the largest weight of each row if `rank` (int64[R]) is 1, and so on."""
    in_order = weights.sort(1, descending=True).values
    return in_order.gather(1, (rank - 1).unsqueeze(1)).squeeze(1)


def _least_of_share(weights: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return float32[R]: the largest w such that the entries >= w hold `share` (float64[R]).

    `share` is a share of the row's mass. Masses are summed in fixed point, 40 bits after the point,
    so the order of the additions does not matter.
    """
    in_order = weights.sort(1, descending=True).values
    masses = (in_order * _FIXED_POINT).long().cumsum(1)
    total = masses[:, -1]
    target = torch.minimum((share * total.double()).ceil().long(), total).clamp_(min=1)
    rank = (masses < target.unsqueeze(1)).sum(1, keepdim=True)
    return in_order.gather(1, rank.clamp_(max=weights.shape[1] - 1)).squeeze(1)


def _select_on_host(
    weights: torch.Tensor, *, share: torch.Tensor | None = None, count: torch.Tensor | None = None
) -> torch.Tensor:
    """Do as `_least_of_share`, or with `count` (int64[R]) as `_heaviest`, on CPU tensors.

    Weights in [0, 1] have the same order as their bits, whose highest are a bin of a histogram. So
    only one bin is sorted. Masses are summed in float64, row by row in a fixed order.
    """
    thresholds = torch.empty(len(weights))
    for i, row in enumerate(weights.numpy()):
        bins = row.view(np.int32) >> _BIN_SHIFT
        histogram = np.bincount(bins, None if share is None else row, _BINS).astype(np.float64)
        at_least = histogram[::-1].cumsum()[::-1]
        target = 0.0
        if share is not None:
            target = float(share[i]) * at_least[0]
        elif count is not None:
            target = float(count[i])
        chosen = max(int((at_least >= target).sum()) - 1, 0)
        above = at_least[chosen] - histogram[chosen]
        inside = np.sort(row[bins == chosen])[::-1]
        amounts = inside.astype(np.float64) if share is not None else np.ones(len(inside))
        rank = int((amounts.cumsum() < target - above).sum())
        thresholds[i] = float(inside[min(rank, len(inside) - 1)])
    return thresholds


def _top_k_threshold(
    weights: torch.Tensor, tops: torch.Tensor | None, top_k: torch.Tensor
) -> torch.Tensor:
    """Return float32[R]: the k-th largest weight, 0 where top_k is off."""
    rank = top_k.long().clamp_(max=weights.shape[1])
    if tops is None:
        thresholds = _heaviest(weights, rank.clamp(min=1))
    else:
        column = (rank - 1).clamp_(0, tops.shape[1] - 1)
        thresholds = tops.gather(1, column.unsqueeze(1)).squeeze(1)
        deep_rows = (rank > tops.shape[1]).nonzero().squeeze(1)
        if deep_rows.numel():
            thresholds[deep_rows] = _select_on_host(weights[deep_rows], count=rank[deep_rows])
    return thresholds.masked_fill_(rank == 0, 0.0)


def _top_p_threshold(
    weights: torch.Tensor, tops: torch.Tensor | None, top_p: torch.Tensor
) -> torch.Tensor:
    """Return float32[R]: the smallest weight of the nucleus, 0 where top_p is off."""
    if tops is None:
        thresholds = _least_of_share(weights, top_p)
    else:
        target = top_p * row_sums(weights)
        prefix = tops.double().cumsum(1)
        column = (prefix < target.unsqueeze(1)).sum(1).clamp_(max=tops.shape[1] - 1)
        thresholds = tops.gather(1, column.unsqueeze(1)).squeeze(1)
        wide_rows = ((prefix[:, -1] < target) & (top_p < 1.0)).nonzero().squeeze(1)
        if wide_rows.numel():
            thresholds[wide_rows] = _select_on_host(weights[wide_rows], share=top_p[wide_rows])
    return thresholds.masked_fill_(top_p >= 1.0, 0.0)
