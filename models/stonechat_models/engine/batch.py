"""Builds the packed arrays of a step from its items."""

from array import array
from collections import abc
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from stonechat_models.backends.base import ForwardBatch, HostBatch
from stonechat_models.engine.sequence import Scheduled

if TYPE_CHECKING:
    import torch

_ALIGNMENT = 16
"""Bytes."""
_ADAPTER = attrgetter("sequence.group.adapter")


def build_host_batch(
    items: abc.Sequence[Scheduled],
    block_size: int,
    sampled_ids: abc.Sequence[int] | None = None,
) -> HostBatch:
    """Pack the tokens of all items; see `build_batch`."""
    packed = _PackedTokens(items)
    batch = HostBatch(
        token_ids=array("q", packed.token_ids),
        positions=array("q"),
        slot_mapping=array("q"),
        query_start=array("i", [0, *packed.ends]),
        block_table=array("i"),
        logits_index=array("q"),
        state_slots=array("q", [item.sequence.state_slot for item in items]),
    )
    for place, source in zip(packed.places, packed.sources, strict=True):
        assert sampled_ids is not None, "the step that a placeholder depends on is not sampled"
        batch.token_ids[place] = sampled_ids[source]
    width = -(-max(item.context_len for item in items) // block_size)
    start = 0
    for item, first, end in zip(items, packed.firsts, packed.ends, strict=True):
        positions, blocks = range(first, first + end - start), item.sequence.block_table
        batch.positions.extend(positions)
        batch.slot_mapping.extend(
            [blocks[p // block_size] * block_size + p % block_size for p in positions]
        )
        row = blocks[: -(-item.context_len // block_size)]
        batch.block_table.extend(row)
        batch.block_table.frombytes(bytes((width - len(row)) * row.itemsize))
        batch.logits_index.extend(range(end - item.num_prompt_rows - item.num_rows, end))
        start = end
    return batch


def build_batch(
    items: abc.Sequence[Scheduled],
    block_size: int,
    device: "torch.device",
    sampled_ids: "torch.Tensor | None" = None,
) -> ForwardBatch:
    """Pack the tokens of all items. An item that reaches its end gets a logits row, plus one per
    draft token, and one per prompt token whose log-probability it computes.

    `sampled_ids`, int64[rows], are the previous step's tokens if the host does not know them yet.
    They fill the placeholders.
    """
    packed = _PackedTokens(items)
    num_rows = [item.num_prompt_rows + item.num_rows for item in items]
    firsts, ends, indices = np.array(packed.firsts), np.array(packed.ends), np.arange(len(items))
    if len(packed.token_ids) == len(items) == num_rows.count(1):  # a decode step
        lengths, positions, rows = firsts + 1, firsts, indices
    else:
        num_tokens = np.diff(ends, prepend=0)
        lengths, positions = firsts + num_tokens, _ranges(firsts, num_tokens)
        rows = _ranges(ends - num_rows, np.array(num_rows))
        indices = np.repeat(indices, num_tokens)
    query_start_list, context_lens_list = [0, *packed.ends], lengths.tolist()
    table = _padded_table(items, context_lens_list, block_size)
    slots = table[indices, positions // block_size] * np.int64(block_size) + positions % block_size
    tensors = _to_device(
        [packed.token_ids, positions, slots, rows, packed.places, packed.sources],
        [query_start_list, lengths, table.ravel()],
        device,
    )
    token_ids, places, sources = tensors[0], tensors[4], tensors[5]
    adapters = [*map(_ADAPTER, items)]
    if packed.places:
        assert sampled_ids is not None, "the step that a placeholder depends on is not sampled"
        same = len(packed.places) == len(token_ids) == len(sampled_ids)
        if same and packed.sources == list(range(len(sampled_ids))):
            token_ids = sampled_ids  # a decode step of the same sequences
        else:
            token_ids.index_copy_(0, places, sampled_ids[sources])
    return ForwardBatch(
        token_ids=token_ids,
        positions=tensors[1],
        slot_mapping=tensors[2],
        query_start=tensors[6],
        context_lens=tensors[7],
        block_table=tensors[8].view(table.shape),
        logits_index=tensors[3],
        query_start_list=query_start_list,
        context_lens_list=context_lens_list,
        state_slots=[item.sequence.state_slot for item in items],
        num_rows_list=num_rows,
        adapters=adapters if max(adapters) >= 0 else (),
    )


class _PackedTokens:
    """The tokens of a `ForwardBatch`, one item behind the other."""

    def __init__(self, items: abc.Sequence[Scheduled]) -> None:
        self.token_ids: list[int] = []
        self.firsts = [item.start - item.num_again for item in items]
        """The position of each item's first token."""
        self.ends: list[int] = []
        """Where in `token_ids` each item ends."""
        self.places: list[int] = []
        """Where in `token_ids` the host does not know the token yet: the placeholders."""
        self.sources: list[int] = []
        """The row of the sampled token of each placeholder."""
        token_ids = self.token_ids
        for item, first in zip(items, self.firsts, strict=True):
            known, end = item.sequence.token_ids, item.start + item.num_tokens
            if first < len(known):
                token_ids += known[first:end]
            if end > len(known):
                assert item.depends_on is not None, "a placeholder depends on no step"
                self.places.append(len(token_ids))
                self.sources.append(item.depends_on.row)
                token_ids.append(0)
            if item.draft:
                token_ids += item.draft
            self.ends.append(len(token_ids))


def _ranges(firsts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return `lengths[i]` numbers from `firsts[i]` on, for all i in order."""
    starts = np.cumsum(lengths) - lengths
    ranges: np.ndarray = np.repeat(firsts - starts, lengths)
    return ranges + np.arange(len(ranges))


def _padded_table(
    items: abc.Sequence[Scheduled], context_lens: list[int], block_size: int
) -> np.ndarray:
    """Return int32[N, W]: the blocks of each item's context, padded with 0."""
    num_bytes = -(-max(context_lens) // block_size) * np.int32().nbytes
    rows = [
        item.sequence.block_table[: -(-length // block_size)].tobytes().ljust(num_bytes, b"\0")
        for item, length in zip(items, context_lens, strict=True)
    ]
    return np.frombuffer(b"".join(rows), dtype=np.int32).reshape(len(rows), -1)


def _to_device(
    long_parts: abc.Sequence[list[int] | np.ndarray],
    parts: abc.Sequence[list[int] | np.ndarray],
    device: "torch.device",
) -> "list[torch.Tensor]":
    """Return an int64 tensor per long part and an int32 tensor per other part, by one copy.

    They share memory, and each starts at a multiple of 16 bytes: Triton compiles a kernel again
    for a pointer with another alignment.
    """
    import torch

    from stonechat_models.hardware.transfers import to_device

    long_sizes, sizes = _aligned_sizes(long_parts, 8), _aligned_sizes(parts, 4)
    num_bytes = 8 * sum(long_sizes)
    packed = np.zeros(num_bytes + 4 * sum(sizes), dtype=np.uint8)
    _fill(packed[:num_bytes].view(np.int64), long_parts, long_sizes)
    _fill(packed[num_bytes:].view(np.int32), parts, sizes)
    tensor = torch.from_numpy(packed) if device.type == "cpu" else to_device(packed, device)
    longs, ints = tensor[:num_bytes].view(torch.int64), tensor[num_bytes:].view(torch.int32)
    return [*longs.split_with_sizes(long_sizes)[::2], *ints.split_with_sizes(sizes)[::2]]


def _aligned_sizes(parts: abc.Sequence[list[int] | np.ndarray], num_bytes: int) -> list[int]:
    """Return the length of each part, and how many numbers are between it and the next part."""
    return [size for p in parts for size in (len(p), -len(p) % (_ALIGNMENT // num_bytes))]


def _fill(
    packed: np.ndarray, parts: abc.Sequence[list[int] | np.ndarray], sizes: list[int]
) -> None:
    start = 0
    for part, size, padding in zip(parts, sizes[::2], sizes[1::2], strict=True):
        packed[start : start + size] = part
        start += size + padding
