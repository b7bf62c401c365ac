"""Where a model computes, and the arrays of a step there: here on the host, with numpy alone."""

import time
from array import array
from collections import abc
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.base import Array, ForwardBatch, HostBatch, StepMedia
from stonechat_models.engine.sequence import Scheduled

Moment = Any
"""A time of a clock in seconds, or an event of a CUDA device."""


class Placement(Protocol):
    """The few operations of a step on arrays of the model's kind."""

    def batch(
        self, items: abc.Sequence[Scheduled], block_size: int, sampled_ids: Array | None
    ) -> ForwardBatch | HostBatch:
        """Pack the tokens of all items.

        An item that reaches its end gets a row of logits, one more per draft token, and one per
        prompt token whose log-probability it computes. `sampled_ids`, int64[rows], are the tokens
        of the previous step if the host does not know them yet. They fill the placeholders.
        """

    def select(self, values: Array, rows: list[int]) -> Array:
        """Return some rows of an array [R, n]."""

    def read(self, values: Array, rows: list[int]) -> npt.NDArray[np.float32]:
        """Return some rows of an array [R, n] on the host, as float32."""

    def now(self) -> Moment:
        """Note the end of the work that is queued now."""

    def seconds(self, start: Moment, end: Moment) -> float | None:
        """Return the seconds between two moments; None until the work is done."""

    def array(self, numbers: npt.NDArray[np.integer]) -> Array:
        """Return the numbers as an array of the model's kind."""

    def joined(self, arrays: abc.Sequence[Array]) -> Array:
        """Return arrays [n, ...] behind each other."""

    def set_rope_positions(self, batch: Any, positions: npt.NDArray[np.int64]) -> None:
        """Give a step of text rotary positions int64[3, T], which are equal in all dimensions."""

    def computing(self) -> AbstractContextManager[object]:
        """The context of a step."""


class OnHost:
    """The host, with arrays of numpy."""

    computing = nullcontext
    now = staticmethod(time.perf_counter)
    joined = staticmethod(np.concatenate)

    def batch(
        self,
        items: abc.Sequence[Scheduled],
        block_size: int,
        sampled_ids: abc.Sequence[int] | None = None,
    ) -> HostBatch:
        packed = PackedTokens(items)
        starts, ends = [0, *packed.ends], packed.ends
        batch = HostBatch(
            token_ids=array("q", packed.token_ids),
            positions=array("q"),
            slot_mapping=array("q"),
            query_start=array("i", starts),
            block_table=array("i"),
            logits_index=array("q"),
            state_slots=array("q", [item.sequence.state_slot for item in items]),
        )
        for place, source in zip(packed.places, packed.sources, strict=True):
            assert sampled_ids is not None, "the step that a placeholder depends on is not sampled"
            batch.token_ids[place] = sampled_ids[source]
        lengths = [first + end - i for first, i, end in zip(packed.firsts, starts, ends)]
        width = -(-max(lengths) // block_size)
        for item, first, length, end in zip(items, packed.firsts, lengths, ends, strict=True):
            positions, blocks = range(first, length), item.sequence.block_table
            batch.positions.extend(positions)
            batch.slot_mapping.extend(
                [blocks[p // block_size] * block_size + p % block_size for p in positions]
            )
            row = blocks[: -(-length // block_size)]
            batch.block_table.extend(row)
            batch.block_table.frombytes(bytes((width - len(row)) * row.itemsize))
            batch.logits_index.extend(range(end - item.num_prompt_rows - item.num_rows, end))
        return batch

    def select(self, values: Array, rows: list[int]) -> Array:
        return values[rows]

    def read(self, values: Array, rows: list[int]) -> npt.NDArray[np.float32]:
        return np.asarray(values[rows], dtype=np.float32)

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def array(self, numbers: npt.NDArray[np.integer]) -> Array:
        return np.ascontiguousarray(numbers)

    def set_rope_positions(self, batch: HostBatch, positions: npt.NDArray[np.int64]) -> None:
        batch.media = StepMedia(
            rows=np.empty(0, dtype=np.int64),
            embeddings=np.empty((0, 0), dtype=np.float32),
            rope_positions=self.array(positions),
        )


class PackedTokens:
    """The tokens of a batch, one item behind the other."""

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
