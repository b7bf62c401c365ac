"""Decode steps as CUDA graphs. A step replays the graph of the smallest bucket that it fits in.

A captured step reads only static buffers, and each step copies its inputs there. Rows that a step
does not fill see no keys and write to a cache slot that is never read. The capturer is passed in,
so that everything else runs on any device. Before a graph is used, its replay is compared with the
captured step on a few sequences.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Protocol

import torch

from stonechat_models.backends.base import CausalModel, ForwardBatch
from stonechat_models.backends.transformers.verify import (
    TOLERANCE,
    logits_error,
    random_batch,
)
from stonechat_models.types import ModelInfo

logger = logging.getLogger(__name__)

Forward = Callable[[], torch.Tensor]

PARITY_LENGTHS = (3, 50, 19, 7)
"""Lengths of the sequences that graphs are checked on, cut to what the KV cache holds."""


class Capturer(Protocol):
    """Turns a step into a function that repeats it on the same memory."""

    def capture(self, step: Forward) -> Forward:
        """Run `step` now, and return a function that repeats its kernels.

        The function returns the same tensor each time. Raises if the step cannot be captured.
        """


def buckets(max_num_seqs: int) -> list[int]:
    """The batch sizes to capture: powers of two below `max_num_seqs`, and that number itself."""
    sizes = [1 << i for i in range(max_num_seqs.bit_length()) if 1 << i < max_num_seqs]
    return [*sizes, max_num_seqs]


@dataclass(slots=True)
class StaticBuffers:
    """The inputs of a decode step, with one token per sequence."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor
    logits_index: torch.Tensor
    padding_slot: int

    @classmethod
    def allocate(
        cls, size: int, table_width: int, padding_slot: int, device: torch.device
    ) -> "StaticBuffers":
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            token_ids=zeros(size),
            positions=zeros(size),
            slot_mapping=zeros(size).fill_(padding_slot),
            query_start=torch.arange(size + 1, dtype=torch.int32, device=device),
            context_lens=zeros(size, dtype=torch.int32),
            block_table=zeros(size, table_width, dtype=torch.int32),
            logits_index=torch.arange(size, device=device),
            padding_slot=padding_slot,
        )

    @property
    def num_bytes(self) -> int:
        tensors = (getattr(self, f.name) for f in fields(self))
        return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))

    def view(self, size: int, block_size: int) -> ForwardBatch:
        """A batch of `size` sequences that shares this memory.

        Its context lengths on the host are the longest possible. Kernels may choose a grid by
        them, and the grid must suit every step.
        """
        return ForwardBatch(
            token_ids=self.token_ids[:size],
            positions=self.positions[:size],
            slot_mapping=self.slot_mapping[:size],
            query_start=self.query_start[: size + 1],
            context_lens=self.context_lens[:size],
            block_table=self.block_table[:size],
            logits_index=self.logits_index[:size],
            query_start_list=list(range(size + 1)),
            context_lens_list=[self.block_table.shape[1] * block_size] * size,
        )

    def fill(self, batch: ForwardBatch, size: int) -> None:
        """Copy a decode step in. The rows from there to `size` become padding.

        Padding rows see no keys and write to the padding slot.
        """
        num_rows = batch.num_seqs
        self.token_ids[:num_rows].copy_(batch.token_ids, non_blocking=True)
        self.positions[:num_rows].copy_(batch.positions, non_blocking=True)
        self.slot_mapping[:num_rows].copy_(batch.slot_mapping, non_blocking=True)
        self.context_lens[:num_rows].copy_(batch.context_lens, non_blocking=True)
        width = batch.block_table.shape[1]
        self.block_table[:num_rows, :width].copy_(batch.block_table, non_blocking=True)
        if num_rows < size:
            self.token_ids[num_rows:size].zero_()
            self.positions[num_rows:size].zero_()
            self.slot_mapping[num_rows:size].fill_(self.padding_slot)
            self.context_lens[num_rows:size].zero_()


class GraphedModel:
    """A model whose decode steps replay CUDA graphs. Every other step runs without a graph.

    The model's KV cache must be allocated, with one more block than `info.num_blocks`.
    """

    def __init__(self, model: CausalModel, device: torch.device) -> None:
        info = model.info
        self.model = model
        self.info: ModelInfo = info
        self._device = device
        self._buckets = buckets(info.max_num_seqs)
        width = -(-info.max_model_len // info.block_size)
        padding_slot = info.num_blocks * info.block_size
        self._buffers = StaticBuffers.allocate(info.max_num_seqs, width, padding_slot, device)
        self._graphs: dict[int, Forward] = {}

    @property
    def kv_bytes_per_token(self) -> int:
        return self.model.kv_bytes_per_token

    @property
    def hidden_size(self) -> int:
        return self.model.hidden_size

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        raise RuntimeError("the CUDA graphs read the present KV cache, so it cannot be replaced")

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        self.model.copy_blocks(pairs)

    def capture(self, capturer: Capturer, progress: Callable[[str], None]) -> None:
        """Capture and check a graph for every bucket. Overwrites the KV cache.

        The largest bucket comes first, since it sizes the memory that all graphs share. If a
        capture fails or a graph returns other logits, the model runs without graphs, and
        `progress` gets the reason.
        """
        started = time.perf_counter()
        progress(f"capturing CUDA graphs for up to {self._buckets[-1]} sequences")
        try:
            for size in reversed(self._buckets):
                batch = self._buffers.view(size, self.info.block_size)
                self._graphs[size] = capturer.capture(partial(self.model.forward, batch))
            self._check()
        except Exception as error:  # after any error, steps can still run without graphs
            logger.warning("capturing failed", exc_info=error)
            reason = str(error).strip() or type(error).__name__
            progress(f"running without CUDA graphs: {reason.splitlines()[0]}")
            self._graphs.clear()
            return
        seconds = time.perf_counter() - started
        progress(f"captured {len(self._graphs)} CUDA graphs in {seconds:.1f} s, and checked them")

    @torch.inference_mode()
    def _check(self) -> None:
        """Raises `RuntimeError` if a replay differs from the same step without a graph, or if a
        padded step differs from the same step without padding.

        For padding the median row decides. Rounding may differ between batch sizes, and a router
        may then choose other experts in single rows.
        """
        tolerance = TOLERANCE["logits"].get(getattr(torch, self.info.dtype), 0.25)
        sequences = parity_sequences(self.info).to(self._device)
        self.model.forward(sequences)
        padding_differences = []
        previous_size = 0
        for size in self._buckets:
            batch = last_tokens(sequences, previous_size + 1)
            previous_size = size
            self._buffers.fill(batch, size)
            num_rows = batch.num_seqs
            actual = self._graphs[size]()[:num_rows].clone()
            expected = self.model.forward(self._buffers.view(size, self.info.block_size))[:num_rows]
            difference = float(logits_error(expected, actual).max())
            if difference > tolerance and difference > 2 * self._noise(size, expected):
                raise RuntimeError(
                    f"the graph for {size} sequences gives logits that are off by {difference:.2g} "
                    f"standard deviations; rounding explains {tolerance:g} at most"
                )
            padding_differences.append(logits_error(self.model.forward(batch), actual))
        typical = float(torch.cat(padding_differences).median())
        if not typical <= tolerance:
            raise RuntimeError(
                f"padded decode steps give logits that are off by {typical:.2g} standard "
                f"deviations; rounding explains {tolerance:g} at most"
            )

    def _noise(self, size: int, logits: torch.Tensor) -> float:
        """How much a step without a graph differs from itself when it runs again.

        Kernels that add in any order cause such differences. Returns 0 if it is not finite.
        """
        repeated = self.model.forward(self._buffers.view(size, self.info.block_size))
        noise = float(logits_error(logits, repeated[: len(logits)]).max())
        return noise if math.isfinite(noise) else 0.0

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """As in `CausalModel`, but each decode step overwrites the logits of the one before."""
        num_seqs = batch.num_seqs
        is_decode = batch.num_tokens == num_seqs == len(batch.logits_index)
        if not is_decode or not self._graphs:
            return self.model.forward(batch)
        size = next(size for size in self._buckets if size >= num_seqs)
        self._buffers.fill(batch, size)
        return self._graphs[size]()[:num_seqs]

    def forward_hidden(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model.forward_hidden(batch)


def parity_sequences(info: ModelInfo) -> ForwardBatch:
    """A prefill of a few sequences of random tokens that fit in the KV cache; on the CPU."""
    num_seqs = min(len(PARITY_LENGTHS), info.num_blocks)
    longest = min(info.max_model_len, info.num_blocks // num_seqs * info.block_size)
    lengths = [min(length, longest) for length in PARITY_LENGTHS[:num_seqs]]
    return random_batch([(n, n) for n in lengths], info.block_size, vocab_size=info.vocab_size)


def last_tokens(batch: ForwardBatch, num_seqs: int) -> ForwardBatch:
    """A decode step of `num_seqs` rows that computes the last tokens of `batch` again.

    Row i is sequence i of `batch`. If there are more rows than sequences, the sequences repeat.
    """
    rows = torch.arange(num_seqs, device=batch.token_ids.device) % batch.num_seqs
    last = batch.logits_index[rows]
    return ForwardBatch(
        token_ids=batch.token_ids[last],
        positions=batch.positions[last],
        slot_mapping=batch.slot_mapping[last],
        query_start=torch.arange(num_seqs + 1, dtype=torch.int32, device=rows.device),
        context_lens=batch.context_lens[rows],
        block_table=batch.block_table[rows],
        logits_index=torch.arange(num_seqs, device=rows.device),
        query_start_list=list(range(num_seqs + 1)),
        context_lens_list=[batch.context_lens_list[i % batch.num_seqs] for i in range(num_seqs)],
    )
