"""What the numerical checks at load share: random steps, tolerances, and the measure of an error.

The packing check, the parity checks of attention and of fused parts, the checks of CUDA graphs and
of quantised modules say only what they compare.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch.nn.utils.rnn import pad_sequence

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.errors import UnsupportedModelError

TOLERANCE = {
    "logits": {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.25},
    "attention": {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2},
    "states": {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2},
    "fused": {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2},
}
"""Largest allowed error by what is compared, and by dtype: some roundings.

The unit of logits is their standard deviation; that of an attention output is its token's largest
number; that of a fused part's output and of recurrent states is their largest number."""


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
    widths = [-(-context // block_size) for _, context in lengths]
    blocks = torch.randperm(sum(widths), generator=generator, dtype=torch.int32)
    token_ids = torch.zeros(sum(queries for queries, _ in lengths), dtype=torch.int64)
    if vocab_size is not None:
        token_ids.random_(vocab_size, generator=generator)
    ids = torch.split(token_ids, [queries for queries, _ in lengths])
    firsts = [context - queries for queries, context in lengths]
    parts = zip(ids, firsts, torch.split(blocks, widths), strict=True)
    return packed_batch(list(parts), block_size, range(len(lengths)))


def packed_batch(
    parts: Sequence[tuple[torch.Tensor, int, torch.Tensor]],
    block_size: int,
    slots: Sequence[int],
    *,
    all_rows: bool = False,
) -> ForwardBatch:
    """Return a step on the CPU. `slots`: those of the sequences' states.

    Of each sequence, `parts` has the tokens int64[n], how many are before them, and its blocks
    int32[W]. The last token of each needs logits; with `all_rows`, all do.
    """
    counts = [len(ids) for ids, _, _ in parts]
    query_start = [0, *accumulate(counts)]
    context_lens = [first + n for n, (_, first, _) in zip(counts, parts, strict=True)]
    places = [(torch.arange(first, first + len(ids)), blocks) for ids, first, blocks in parts]
    ends = torch.tensor(query_start[1:])
    return ForwardBatch(
        token_ids=torch.cat([ids for ids, _, _ in parts]),
        positions=torch.cat([positions for positions, _ in places]),
        slot_mapping=torch.cat(
            [blocks[p // block_size].long() * block_size + p % block_size for p, blocks in places]
        ),
        query_start=torch.tensor(query_start, dtype=torch.int32),
        context_lens=torch.tensor(context_lens, dtype=torch.int32),
        block_table=pad_sequence([blocks for _, _, blocks in parts], batch_first=True),
        logits_index=torch.arange(query_start[-1]) if all_rows else ends - 1,
        query_start_list=query_start,
        context_lens_list=context_lens,
        state_slots=slots,
        state_index=torch.tensor(list(slots)),
        num_rows_list=counts if all_rows else [1] * len(parts),
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


def logits_tolerance(dtype: torch.dtype) -> float:
    """The largest allowed error of logits for weights of `dtype`."""
    return TOLERANCE["logits"].get(dtype, 0.25)


def whole_pass(module: torch.nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the logits float32[T, V] of a sequence alone, in one forward pass without a cache.

    Raises `UnsupportedModelError` if they are not finite.
    """
    logits: torch.Tensor = module(input_ids=token_ids.unsqueeze(0), use_cache=False).logits[0]
    if not torch.isfinite(logits).all():
        dtype = next(module.parameters()).dtype
        raise UnsupportedModelError(f"the model gives logits that are not finite in {dtype}")
    return logits.float()
