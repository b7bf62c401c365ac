"""Builds the packed tensors of a step from its items."""

from collections import abc
from dataclasses import dataclass, field

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
    draft token, and one per prompt token whose log-probability it computes.

    `sampled_ids`, int64[rows], are the previous step's tokens if the host does not know them yet.
    They fill the placeholders.
    """
    packed = _PackedItems()
    for item in items:
        packed.add(item, block_size)
    query_start = [0, *packed.ends]
    block_table = _padded_table(items, packed.context_lens, block_size)
    # Two copies to the device instead of seven.
    token_ids, positions, slots, rows = _to_device(
        [packed.token_ids, packed.positions, packed.slots, packed.logits_index], np.int64, device
    )
    starts, context_lens, table = _to_device(
        [query_start, packed.context_lens, block_table.ravel()], np.int32, device
    )
    if packed.placeholders:
        token_ids = _fill_placeholders(token_ids, packed.placeholders, sampled_ids)
    return ForwardBatch(
        token_ids=token_ids,
        positions=positions,
        slot_mapping=slots,
        query_start=starts,
        context_lens=context_lens,
        block_table=table.view(block_table.shape),
        logits_index=rows,
        query_start_list=query_start,
        context_lens_list=packed.context_lens,
        state_slots=packed.state_slots,
        num_rows_list=packed.num_rows,
    )


@dataclass(slots=True)
class _PackedItems:
    """The numbers of a `ForwardBatch`, one item behind the other."""

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    logits_index: list[int] = field(default_factory=list)
    num_rows: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """Where in `token_ids` each item ends."""
    context_lens: list[int] = field(default_factory=list)
    state_slots: list[int] = field(default_factory=list)
    placeholders: list[tuple[int, Scheduled]] = field(default_factory=list)
    """Where in `token_ids` the host does not know the token yet, and the item."""

    def add(self, item: Scheduled, block_size: int) -> None:
        sequence, first = item.sequence, item.start - item.num_again
        end = item.start + item.num_tokens
        last = end + len(item.draft)
        self.token_ids += sequence.token_ids[first:end]
        if end > len(sequence.token_ids):
            self.placeholders.append((len(self.token_ids), item))
            self.token_ids.append(0)
        self.token_ids += item.draft
        self.positions += range(first, last)
        self.slots += _slots(sequence.block_table, first, last, block_size)
        num_tokens, num_rows = len(self.token_ids), item.num_prompt_rows + item.num_rows
        self.logits_index += range(num_tokens - num_rows, num_tokens)
        self.num_rows.append(num_rows)
        self.ends.append(num_tokens)
        self.context_lens.append(last)
        self.state_slots.append(sequence.state_slot)


def _padded_table(
    items: abc.Sequence[Scheduled], context_lens: list[int], block_size: int
) -> np.ndarray:
    """Return int32[N, W]: the blocks of each item's context, padded with 0."""
    table = np.zeros((len(items), -(-max(context_lens) // block_size)), dtype=np.int32)
    for row, item, length in zip(table, items, context_lens, strict=True):
        width = -(-length // block_size)
        row[:width] = item.sequence.block_table[:width]
    return table


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
    placeholders: abc.Sequence[tuple[int, Scheduled]],
    sampled_ids: torch.Tensor | None,
) -> torch.Tensor:
    """Return the token ids int64[T] with each placeholder replaced by its sampled token.

    `placeholders` has the index and the item of each.
    """
    indices, rows = [], []
    for position, item in placeholders:
        assert item.depends_on is not None, "a placeholder depends on no step"
        indices.append(position)
        rows.append(item.depends_on.row)
    assert sampled_ids is not None, "the step that a placeholder depends on is not sampled"
    if len(sampled_ids) == len(token_ids) == len(rows) and rows == list(range(len(rows))):
        return sampled_ids  # a decode step of the same sequences
    index, row = to_device([indices, rows], token_ids.device).unbind()
    return token_ids.index_copy_(0, index, sampled_ids[row])
