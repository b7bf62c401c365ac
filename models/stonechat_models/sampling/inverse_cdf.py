"""Draws from unnormalised distributions by inverse CDF. The batch size does not change the sums.

A row's sums consist of elementwise additions only (a tree of fan-out 16 over interleaved tokens).
So a row has the same bits alone and in any batch, on CPU and on GPU. The draw descends that tree.
There is no prefix sum over the whole vocabulary, which also keeps float32 exact enough.
"""

import torch

FANOUT = 16
ROW_MULTIPLE = FANOUT**3
"""Rows are padded with zeros to a multiple of this."""
_MAX_ROOTS = 64


def padded_width(vocab_size: int) -> int:
    """Return the row width that the tree needs for `vocab_size` tokens."""
    return -(-vocab_size // ROW_MULTIPLE) * ROW_MULTIPLE


def fold_sum(rows: torch.Tensor) -> torch.Tensor:
    """Sum float[R, n] to [R, n / 16]: entry i is the sum of all j with j mod (n / 16) == i."""
    for _ in range(4):
        half = rows.shape[1] // 2
        rows = rows[:, :half] + rows[:, half:]
    return rows


def fold_max(rows: torch.Tensor) -> torch.Tensor:
    """Reduce [R, n] to [R, n / 16] like `fold_sum`, but by maximum."""
    for _ in range(4):
        half = rows.shape[1] // 2
        rows = torch.maximum(rows[:, :half], rows[:, half:])
    return rows


def sum_tree(weights: torch.Tensor) -> list[torch.Tensor]:
    """Return the levels of sums over float32[R, n], leaves first, roots last."""
    levels = [weights]
    for _ in level_widths(weights.shape[1])[1:]:
        levels.append(fold_sum(levels[-1]))
    return levels


def level_widths(width: int) -> list[int]:
    """Return the widths of the levels of a tree with `width` leaves, the number of roots last.

    There are at most 64 roots, or more if their number is not a multiple of 16.
    """
    widths = [width]
    while widths[-1] > _MAX_ROOTS and widths[-1] % FANOUT == 0:
        widths.append(widths[-1] // FANOUT)
    return widths


def row_sums(weights: torch.Tensor) -> torch.Tensor:
    """Return float64[R], the sums of float32[R, n]."""
    return _root_sums(sum_tree(weights)[-1])


def _root_sums(roots: torch.Tensor) -> torch.Tensor:
    sums = roots.double()
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        upper = sums[:, half:].clone()
        upper[:, :half] += sums[:, :half]
        sums = upper
    return sums.squeeze(1)


def draw(weights: torch.Tensor, variates: torch.Tensor) -> torch.Tensor:
    """Return int64[R]: the token that each row draws at its variate (float64[R], inside (0, 1)).

    `weights`, float32[R, n] with n a multiple of `ROW_MULTIPLE`, need not sum to one. A weight
    of zero is never drawn, unless its whole row is zero.
    """
    levels = sum_tree(weights)
    index, target = _pick(levels[-1].double(), variates * _root_sums(levels[-1]))
    for level in reversed(levels[:-1]):
        stride = level.shape[1] // FANOUT
        steps = torch.arange(0, level.shape[1], stride, device=level.device)
        children = index.unsqueeze(1) + steps
        child, target = _pick(level.gather(1, children).double(), target)
        index = index + child * stride
    return index


def prefix_sums(sums: torch.Tensor, *, in_order: bool) -> torch.Tensor:
    """Return the inclusive prefix sums of float64[R, n] along each row.

    `in_order` adds one entry after the other, which is fastest on CPU. Otherwise the sums take
    log2(n) elementwise additions: on a GPU, `cumsum` would add in an order that depends on R.
    """
    if in_order:
        return sums.cumsum(1)
    shift = 1
    while shift < sums.shape[1]:
        sums = torch.cat([sums[:, :shift], sums[:, shift:] + sums[:, :-shift]], 1)
        shift *= 2
    return sums


def _pick(sums: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first positive entry whose prefix sum exceeds `target`, and the rest of `target`.

    The rest is `target` minus the sum of the entries before. If rounding leaves `target` at or
    past the total, the last positive entry is returned.
    """
    prefix = prefix_sums(sums, in_order=sums.device.type == "cpu")
    is_positive = sums > 0
    hits = (prefix > target.unsqueeze(1)) & is_positive
    columns = torch.arange(sums.shape[1], device=sums.device)
    last = torch.where(is_positive, columns, 0).amax(1)
    first = torch.where(hits, columns, sums.shape[1]).amin(1)
    index = torch.where(first < sums.shape[1], first, last)
    column = index.unsqueeze(1)
    before = (prefix.gather(1, column) - sums.gather(1, column)).squeeze(1)
    return index, (target - before).clamp_(min=0.0)
