"""The inputs of steps that replay CUDA graphs: which shapes are captured, and their memory.

A captured step always has the same shape, so smaller steps are padded. In a decode step, padding
rows are sequences of one token without a context, all with one recurrent state. In a mixed step,
the padding tokens are one more sequence without a context, and the sequences after it have no
tokens. Padding sees no keys and writes to a cache slot that is never read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from stonechat_models.backends.base import ForwardBatch

TOKEN_BUCKETS = (16, 64, 128, 256, 384, 512)
"""Tokens of the mixed steps that are captured. In steps of more tokens the device needs longer than
the host, so a graph would gain little."""
FEW_SEQS = 8
"""Sequences of the smallest shapes. Their long contexts are split among more programs."""
SOME_SEQS = 64
"""Sequences of the next larger shapes."""
ALL_SEQS_FROM = 256
"""Tokens from which on there are shapes for all sequences that may run."""
SPARE_ROWS = 64
"""Rows of logits for draft tokens, if there are many sequences."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """The most tokens, sequences and rows of logits in the steps of one graph.

    In a decode step, each sequence has one token and one row. Other steps are mixed: they have
    prompts or draft tokens.
    """

    tokens: int
    seqs: int
    rows: int
    is_decode: bool = False

    @classmethod
    def decode(cls, size: int) -> "StepShape":
        return cls(size, size, size, is_decode=True)

    @property
    def view_seqs(self) -> int:
        """Sequences of the captured step. A mixed step has one more, for the padding tokens."""
        return self.seqs if self.is_decode else self.seqs + 1

    def fits(self, batch: ForwardBatch) -> bool:
        return (
            batch.num_tokens <= self.tokens
            and batch.num_seqs <= self.seqs
            and len(batch.logits_index) <= self.rows
        )

    def query_start_list(self) -> list[int]:
        """What kernels read on the host about the sequences of the captured step.

        They may choose a grid by the number of sequences with one token. In a mixed step a quarter
        of the sequences are said to have one; any number of them may.
        """
        if self.is_decode:
            return list(range(self.seqs + 1))
        num_single = max(1, self.seqs // 4)
        return [*range(num_single + 1), *[self.tokens] * (self.seqs + 1 - num_single)]

    def __str__(self) -> str:
        kind = "" if self.is_decode else f"{self.tokens} tokens of "
        return f"{kind}{self.seqs} sequences"


def buckets(max_num_seqs: int) -> list[int]:
    """The batch sizes to capture: powers of two below `max_num_seqs`, and that number itself."""
    sizes = [1 << i for i in range(max_num_seqs.bit_length()) if 1 << i < max_num_seqs]
    return [*sizes, max_num_seqs]


def captured_shapes(
    attention_backend: str, max_num_seqs: int, max_batch_tokens: int, *, packs_prompts: bool = True
) -> list[StepShape]:
    """The shapes of decode steps, then those of mixed steps, each from the smallest on.

    Mixed steps need an attention backend that reads their lengths on the device, and a model that
    computes all sequences in one call (`packs_prompts`).
    """
    shapes = [StepShape.decode(size) for size in buckets(max_num_seqs)]
    if attention_backend == "triton" and packs_prompts:
        shapes += mixed_shapes(max_num_seqs, max_batch_tokens)
    return shapes


def mixed_shapes(max_num_seqs: int, max_batch_tokens: int) -> list[StepShape]:
    """The shapes of mixed steps to capture, the smallest first.

    For each number of tokens there are shapes for few, some and as many sequences as may be. There
    are none if a step may have hardly any tokens.
    """
    most = min(max_batch_tokens, TOKEN_BUCKETS[-1])
    if most < TOKEN_BUCKETS[0]:
        return []
    shapes = []
    for tokens in [*(n for n in TOKEN_BUCKETS if n < most), most]:
        sizes = {FEW_SEQS, min(tokens // 2, SOME_SEQS)}
        if tokens >= ALL_SEQS_FROM:
            sizes.add(min(tokens, max_num_seqs))
        rows = {min(n, max_num_seqs): min(tokens, 2 * n, n + SPARE_ROWS) for n in sorted(sizes)}
        shapes += [StepShape(tokens, seqs, rows[seqs]) for seqs in rows]
    return shapes


@dataclass(slots=True)
class StaticBuffers:
    """The inputs and the output of all captured steps. The steps share this memory."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor
    logits_index: torch.Tensor
    state_index: torch.Tensor
    counts: torch.Tensor
    """int32: 0, 1, 2, … where the sequences of a decode step start."""
    rows: torch.Tensor
    """int64: 0, 1, 2, … the rows of logits of a decode step."""
    logits: torch.Tensor
    """[rows, vocabulary]: the output of all graphs, at first float32."""
    padding_slot: int
    padding_state: int

    @classmethod
    def allocate(
        cls,
        shapes: Sequence[StepShape],
        table_width: int,
        padding_slot: int,
        vocab_size: int,
        device: torch.device,
        padding_state: int = 0,
    ) -> "StaticBuffers":
        """`table_width`: blocks of the longest context. `padding_slot`: where padding writes keys.

        `padding_state`: the slot of its recurrent state.
        """

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        num_tokens = max(shape.tokens for shape in shapes)
        num_seqs = max(shape.view_seqs for shape in shapes)
        num_rows = max(shape.rows for shape in shapes)
        return cls(
            token_ids=zeros(num_tokens),
            positions=zeros(num_tokens),
            slot_mapping=zeros(num_tokens),
            query_start=zeros(num_seqs + 1, dtype=torch.int32),
            context_lens=zeros(num_seqs, dtype=torch.int32),
            block_table=zeros(num_seqs, table_width, dtype=torch.int32),
            logits_index=zeros(num_rows),
            state_index=zeros(num_seqs),
            counts=torch.arange(num_seqs + 1, dtype=torch.int32, device=device),
            rows=torch.arange(num_seqs, device=device),
            logits=torch.empty(num_rows, vocab_size, device=device),
            padding_slot=padding_slot,
            padding_state=padding_state,
        )

    def view(self, shape: StepShape, block_size: int) -> ForwardBatch:
        """The captured step of a shape, in this memory.

        Its numbers on the host suit every step of the shape. Kernels may choose a grid by them:
        contexts are the longest possible.
        """
        num_seqs = shape.view_seqs
        query_start = self.counts if shape.is_decode else self.query_start
        logits_index = self.rows if shape.is_decode else self.logits_index
        return ForwardBatch(
            token_ids=self.token_ids[: shape.tokens],
            positions=self.positions[: shape.tokens],
            slot_mapping=self.slot_mapping[: shape.tokens],
            query_start=query_start[: num_seqs + 1],
            context_lens=self.context_lens[:num_seqs],
            block_table=self.block_table[:num_seqs],
            logits_index=logits_index[: shape.rows],
            query_start_list=shape.query_start_list(),
            context_lens_list=[self.block_table.shape[1] * block_size] * num_seqs,
            state_index=self.state_index[:num_seqs],
            num_rows_list=[1] * num_seqs if shape.is_decode else (),
        )

    def clear(self, shape: StepShape) -> None:
        """Make a step of this shape that has only padding."""
        self.query_start[:1].zero_()
        self._pad(shape, num_tokens=0, num_seqs=0, num_rows=0)

    def fill(self, batch: ForwardBatch, shape: StepShape) -> None:
        """Copy a step in. The rest up to `shape` becomes padding."""
        num_tokens, num_seqs = batch.num_tokens, batch.num_seqs
        self.token_ids[:num_tokens].copy_(batch.token_ids, non_blocking=True)
        self.positions[:num_tokens].copy_(batch.positions, non_blocking=True)
        self.slot_mapping[:num_tokens].copy_(batch.slot_mapping, non_blocking=True)
        self.context_lens[:num_seqs].copy_(batch.context_lens, non_blocking=True)
        if batch.state_index is not None:
            self.state_index[:num_seqs].copy_(batch.state_index, non_blocking=True)
        width = batch.block_table.shape[1]
        self.block_table[:num_seqs, :width].copy_(batch.block_table, non_blocking=True)
        if not shape.is_decode:
            self.query_start[: num_seqs + 1].copy_(batch.query_start, non_blocking=True)
            num_rows = len(batch.logits_index)
            self.logits_index[:num_rows].copy_(batch.logits_index, non_blocking=True)
        self._pad(shape, num_tokens, num_seqs, len(batch.logits_index))

    def _pad(self, shape: StepShape, num_tokens: int, num_seqs: int, num_rows: int) -> None:
        if num_tokens < shape.tokens:
            self.token_ids[num_tokens : shape.tokens].zero_()
            self.positions[num_tokens : shape.tokens].zero_()
            self.slot_mapping[num_tokens : shape.tokens].fill_(self.padding_slot)
        self.context_lens[num_seqs : shape.view_seqs].zero_()
        self.state_index[num_seqs : shape.view_seqs].fill_(self.padding_state)
        if not shape.is_decode:
            self.query_start[num_seqs + 1 : shape.view_seqs + 1].fill_(shape.tokens)
            self.logits_index[num_rows : shape.rows].zero_()

    def inputs(self) -> list[torch.Tensor]:
        """All memory that a step is copied to."""
        return [
            self.token_ids,
            self.positions,
            self.slot_mapping,
            self.query_start,
            self.context_lens,
            self.block_table,
            self.logits_index,
            self.state_index,
        ]

    @property
    def num_bytes(self) -> int:
        tensors = (getattr(self, f.name) for f in fields(self))
        return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
