"""A device of PyTorch as the place where a model computes, and the packed tensors of a step."""

import time
from collections import abc
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.base import Array, ForwardBatch
from stonechat_models.engine.placement import Moment, OnHost, PackedTokens, Placement
from stonechat_models.engine.sequence import Scheduled

if TYPE_CHECKING:
    import torch

_ALIGNMENT = 16
"""Bytes."""
_ADAPTER = attrgetter("sequence.group.adapter")


def place_of(device: "torch.device | None") -> Placement:
    """Return the placement of a device; None is the host without PyTorch."""
    return OnHost() if device is None else OnDevice(device)


class OnDevice:
    """A device of PyTorch, the CPU among them."""

    def __init__(self, device: "torch.device") -> None:
        self.device = device

    def batch(
        self, items: abc.Sequence[Scheduled], block_size: int, sampled_ids: Array | None
    ) -> ForwardBatch:
        sampled = None if sampled_ids is None else sampled_ids.to(self.device)
        return build_batch(items, block_size, self.device, sampled)

    def select(self, values: Array, rows: list[int]) -> Array:
        import torch

        from stonechat_models.hardware.transfers import to_device

        return values[to_device(rows, values.device, torch.int64)]

    def read(self, values: Array, rows: list[int]) -> npt.NDArray[np.float32]:
        return np.asarray(self.select(values, rows).float().cpu().numpy())

    def now(self) -> Moment:
        if self.device.type != "cuda":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, start: Moment, end: Moment) -> float | None:
        if self.device.type != "cuda":
            return float(end - start)
        return float(start.elapsed_time(end)) / 1000 if end.query() else None

    def array(self, numbers: npt.NDArray[np.integer]) -> Array:
        from stonechat_models.hardware.transfers import to_device

        return to_device(numbers, self.device)

    def joined(self, arrays: abc.Sequence[Array]) -> Array:
        import torch

        return torch.cat([*arrays])

    def set_rope_positions(self, batch: ForwardBatch, positions: npt.NDArray[np.int64]) -> None:
        """Only rotary embeddings read the batch's own positions, so that CUDA graphs still fit."""
        batch.positions = self.array(positions[0])

    def computing(self) -> AbstractContextManager[object]:
        import torch

        return torch.inference_mode()


def build_batch(
    items: abc.Sequence[Scheduled],
    block_size: int,
    device: "torch.device",
    sampled_ids: "torch.Tensor | None" = None,
) -> ForwardBatch:
    """Pack the tokens of all items; see `Placement.batch`."""
    packed = PackedTokens(items)
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
    state_slots = [item.sequence.state_slot for item in items]
    tensors = _to_device(
        [packed.token_ids, positions, slots, rows, packed.places, packed.sources, state_slots],
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
        query_start=tensors[7],
        context_lens=tensors[8],
        block_table=tensors[9].view(table.shape),
        logits_index=tensors[3],
        query_start_list=query_start_list,
        context_lens_list=context_lens_list,
        state_slots=state_slots,
        state_index=tensors[6],
        num_rows_list=num_rows,
        adapters=adapters if max(adapters) >= 0 else (),
    )


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
