"""Builds the packed tensors of a step from its items."""

from collections import abc
from itertools import accumulate

import numpy as np
import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.engine.sequence import Scheduled
from stonechat_models.hardware.transfers import to_device

_ALIGNMENT = 16
"""Bytes."""


def build_batch(
    items: abc.Sequence[Scheduled],
    block_size: int,
    device: torch.device,
    sampled_ids: torch.Tensor | None = None,
) -> ForwardBatch:
    """Pack the tokens of all items. An item that reaches its end gets a logits row, plus one per
    draft token.

    `sampled_ids`, int64[rows], are the previous step's tokens if the host does not know them yet.
    They fill the placeholders.
    """
    query_start = [0, *accumulate(item.num_tokens + len(item.draft) for item in items)]
    context_lens = [item.context_len for item in items]
    widths = [-(-length // block_size) for length in context_lens]
    block_table = np.zeros((len(items), max(widths)), dtype=np.int32)
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    logits_index: list[int] = []
    for i, item in enumerate(items):
        sequence, first, last = item.sequence, item.start, context_lens[i]
        token_ids += sequence.token_ids[first:last]
        if _has_placeholder(item):
            token_ids.append(0)
        token_ids += item.draft
        positions += range(first, last)
        slots += _slots(sequence.block_table, first, last, block_size)
        block_table[i, : widths[i]] = sequence.block_table[: widths[i]]
        logits_index += range(query_start[i + 1] - item.num_rows, query_start[i + 1])
    # Two copies to the device instead of seven.
    ids, position_ids, slot_mapping, rows = _to_device(
        [token_ids, positions, slots, logits_index], np.int64, device
    )
    bounds, lens, table = _to_device(
        [query_start, context_lens, block_table.ravel()], np.int32, device
    )
    return ForwardBatch(
        token_ids=_fill_placeholders(ids, items, query_start, sampled_ids),
        positions=position_ids,
        slot_mapping=slot_mapping,
        query_start=bounds,
        context_lens=lens,
        block_table=table.view(block_table.shape),
        logits_index=rows,
        query_start_list=query_start,
        context_lens_list=context_lens,
    )


def _slots(block_table: list[int], first: int, last: int, block_size: int) -> list[int]:
    """Return the cache slots of positions first … last - 1."""
    if last - first == 1:
        return [block_table[first // block_size] * block_size + first % block_size]
    positions = np.arange(first, last)
    blocks = np.asarray(block_table, dtype=np.int64)[positions // block_size]
    slots: list[int] = (blocks * block_size + positions % block_size).tolist()
    return slots


def _to_device(
    parts: abc.Sequence[list[int] | np.ndarray], dtype: type[np.integer], device: torch.device
) -> list[torch.Tensor]:
    """Return one tensor per part. They share memory, and each starts at a multiple of 16 bytes.

    Triton compiles a kernel again for a pointer with another alignment.
    """
    multiple = _ALIGNMENT // np.dtype(dtype).itemsize
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + -(-len(part) // multiple) * multiple)
    packed = np.zeros(starts[-1], dtype=dtype)
    for part, start in zip(parts, starts, strict=False):
        packed[start : start + len(part)] = part
    tensor = torch.from_numpy(packed) if device.type == "cpu" else to_device(packed, device)
    return [tensor[s : s + len(part)] for part, s in zip(parts, starts, strict=False)]


def _fill_placeholders(
    token_ids: torch.Tensor,
    items: abc.Sequence[Scheduled],
    query_start: list[int],
    sampled_ids: torch.Tensor | None,
) -> torch.Tensor:
    """Return the token ids int64[T] with each placeholder replaced by its sampled token."""
    indices, rows = [], []
    for i, item in enumerate(items):
        if _has_placeholder(item):
            assert item.depends_on is not None, "a placeholder depends on no step"
            indices.append(query_start[i + 1] - 1)
            rows.append(item.depends_on.row)
    if not indices:
        return token_ids
    assert sampled_ids is not None, "the step that a placeholder depends on is not sampled"
    if len(sampled_ids) == len(token_ids) == len(rows) and rows == list(range(len(rows))):
        return sampled_ids  # a decode step of the same sequences
    index, row = to_device([indices, rows], token_ids.device).unbind()
    return token_ids.index_copy_(0, index, sampled_ids[row])


def _has_placeholder(item: Scheduled) -> bool:
    """True if the last of the item's tokens is a placeholder: the host does not know its id yet."""
    return item.start + item.num_tokens > len(item.sequence.token_ids)
