"""From scheduled sequences to the flat tensors of a step."""

from collections.abc import Sequence as Many

import numpy as np
import torch

from stonechat_models.forward_batch import ForwardBatch
from stonechat_models.host_copy import to_device
from stonechat_models.scheduler import Scheduled

_ALIGNMENT = 16
"""Bytes."""


def build_batch(
    items: Many[Scheduled],
    block_size: int,
    device: torch.device,
    promised: torch.Tensor | None = None,
) -> ForwardBatch:
    """Pack each item's tokens; items that reach their end get a logits row, and one a guess.

    `promised`, int64[rows], are the tokens that items build on and the host does not know yet.
    """
    sizes = [item.num_tokens + len(item.draft) for item in items]
    query_start = [0, *np.cumsum(sizes).tolist()]
    starts = [item.start for item in items]
    context_lens = [item.context_len for item in items]
    widths = [-(-length // block_size) for length in context_lens]
    block_table = np.zeros((len(items), max(widths)), dtype=np.int32)
    token_ids: list[int] = []
    for i, item in enumerate(items):
        sequence = item.sequence
        token_ids += sequence.token_ids[starts[i] : context_lens[i]]
        if _is_promised(item):
            token_ids.append(0)
        token_ids += item.draft
        block_table[i, : widths[i]] = sequence.block_table[: widths[i]]
    row_of_token = np.repeat(np.arange(len(items)), sizes)
    offsets = np.arange(query_start[-1]) - np.repeat(query_start[:-1], sizes)
    positions = np.repeat(starts, sizes) + offsets
    blocks = block_table[row_of_token, positions // block_size].astype(np.int64)
    logits_index = [
        row
        for item, end in zip(items, query_start[1:], strict=True)
        for row in range(end - item.num_rows, end)
    ]
    # Two copies to the device rather than seven.
    ids, at, slots, rows = _to_device(
        [token_ids, positions, blocks * block_size + positions % block_size, logits_index],
        np.int64,
        device,
    )
    bounds, lens, table = _to_device([query_start, context_lens, block_table], np.int32, device)
    return ForwardBatch(
        token_ids=_with_promised(ids, items, query_start, promised),
        positions=at,
        slot_mapping=slots,
        query_start=bounds,
        context_lens=lens,
        block_table=table.view(block_table.shape),
        logits_index=rows,
        query_start_list=query_start,
        context_lens_list=context_lens,
    )


def _to_device(
    parts: Many[list[int] | np.ndarray], dtype: type[np.integer], device: torch.device
) -> Many[torch.Tensor]:
    """Flat tensors of each part's numbers, which share memory; each begins at 16 bytes.

    Triton compiles a kernel anew for a pointer of another alignment.
    """
    arrays = [np.asarray(part, dtype=dtype).ravel() for part in parts]
    step = _ALIGNMENT // np.dtype(dtype).itemsize
    starts = np.cumsum([0, *(-(-array.size // step) * step for array in arrays)])
    packed = np.zeros(starts[-1], dtype=dtype)
    for array, start in zip(arrays, starts[:-1], strict=True):
        packed[start : start + array.size] = array
    moved = to_device(packed, device)
    return [moved[s : s + a.size] for a, s in zip(arrays, starts[:-1].tolist(), strict=True)]


def _with_promised(
    token_ids: torch.Tensor,
    items: Many[Scheduled],
    query_start: list[int],
    promised: torch.Tensor | None,
) -> torch.Tensor:
    """Token ids int64[T] with those filled in that only the device knows."""
    places, rows = [], []
    for i, item in enumerate(items):
        if _is_promised(item):
            assert item.builds_on is not None, "a token is promised by no step"
            places.append(query_start[i + 1] - 1)
            rows.append(item.builds_on.row)
    if not places:
        return token_ids
    assert promised is not None, "the step that promises a token is not sampled"
    if len(promised) == len(token_ids) == len(rows) and rows == list(range(len(rows))):
        return promised  # a decode step of the same sequences
    place, row = to_device([places, rows], token_ids.device).unbind()
    return token_ids.index_copy_(0, place, promised[row])


def _is_promised(item: Scheduled) -> bool:
    """True when the host does not know the last of the item's tokens yet."""
    return item.start + item.num_tokens > len(item.sequence.token_ids)
