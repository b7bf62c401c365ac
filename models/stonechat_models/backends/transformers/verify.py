"""What the numerical checks at load share: random steps, tolerances, and the measure of an error.

The packing check, the parity checks of attention and of fused parts, the checks of CUDA graphs and
of quantised modules say only what they compare.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch

from stonechat_models.backends.base import ForwardBatch

TOLERANCE = {
    "logits": {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.25},
    "attention": {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2},
    "fused": {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2},
}
"""Largest allowed error by what is compared, and by dtype: some roundings.

The unit of logits is their standard deviation; that of an attention output is its token's largest
number; that of a fused part's output is its largest number."""


def random_batch(
    lengths: Sequence[tuple[int, int]],
    block_size: int,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
) -> ForwardBatch:
    """A step on the CPU with scattered blocks, of random tokens if `vocab_size` is given.

    `lengths`: (query tokens, context length) of each sequence. Without a `generator`, the step is
    the same each time.
    """
    generator = generator or torch.Generator().manual_seed(0)
    query_start = [0, *accumulate(queries for queries, _ in lengths)]
    context_lens = [context for _, context in lengths]
    widths = [-(-context // block_size) for context in context_lens]
    blocks = torch.randperm(sum(widths), generator=generator, dtype=torch.int32)
    table = torch.zeros(len(lengths), max(widths), dtype=torch.int32)
    slots, positions = [], []
    for i, sequence_blocks in enumerate(torch.split(blocks, widths)):
        table[i, : widths[i]] = sequence_blocks
        positions.append(torch.arange(context_lens[i] - lengths[i][0], context_lens[i]))
        slots.append(
            sequence_blocks[positions[i] // block_size].long() * block_size
            + positions[i] % block_size
        )
    token_ids = torch.zeros(query_start[-1], dtype=torch.int64)
    if vocab_size is not None:
        token_ids.random_(vocab_size, generator=generator)
    return ForwardBatch(
        token_ids=token_ids,
        positions=torch.cat(positions),
        slot_mapping=torch.cat(slots),
        query_start=torch.tensor(query_start, dtype=torch.int32),
        context_lens=torch.tensor(context_lens, dtype=torch.int32),
        block_table=table,
        logits_index=torch.tensor(query_start[1:]) - 1,
        query_start_list=query_start,
        context_lens_list=context_lens,
        state_slots=range(len(lengths)),
        state_index=torch.arange(len(lengths)),
        num_rows_list=[1] * len(lengths),
    )


def random_prompts(lengths: Sequence[int], vocab_size: int) -> ForwardBatch:
    """A step of whole prompts: random tokens, the same each time, on the CPU."""
    return random_batch([(n, n) for n in lengths], 16, vocab_size=vocab_size)


def relative_error(
    expected: torch.Tensor, actual: torch.Tensor, unit: torch.Tensor | float
) -> torch.Tensor:
    """For each row of [rows, ...] the largest difference in `unit`s (one, or one for each row).

    It is inf for NaN, and for tensors of different shapes.
    """
    if expected.shape != actual.shape:
        return torch.full((len(expected),), float("inf"))
    differences = (expected - actual).abs().reshape(len(expected), -1).amax(dim=1)
    errors = torch.where(differences == 0, 0.0, differences / unit)
    return torch.nan_to_num(errors, nan=float("inf"), posinf=float("inf"))


def logits_error(expected: torch.Tensor, actual: torch.Tensor) -> torch.Tensor:
    """For each row of logits, the largest difference in standard deviations of the logits."""
    if expected.dtype.itemsize < 4:
        expected = expected.float()
    return relative_error(expected, actual.to(expected.dtype), float(expected.std()) or 1.0)
