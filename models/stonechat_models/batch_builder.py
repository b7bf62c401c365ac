"""From scheduled sequences to the flat tensors of a step."""

from collections.abc import Sequence as Many

import numpy as np
import torch

from stonechat_models.forward_batch import ForwardBatch
from stonechat_models.host_copy import to_device
from stonechat_models.scheduler import Scheduled


def build_batch(items: Many[Scheduled], block_size: int, device: torch.device) -> ForwardBatch:
    """Pack each item's next `num_tokens` tokens; items that reach their end get a logits row."""
    sizes = [item.num_tokens for item in items]
    query_start = [0, *np.cumsum(sizes).tolist()]
    context_lens = [item.sequence.num_computed + item.num_tokens for item in items]
    widths = [-(-length // block_size) for length in context_lens]
    block_table = np.zeros((len(items), max(widths)), dtype=np.int32)
    token_ids: list[int] = []
    for i, item in enumerate(items):
        sequence = item.sequence
        token_ids += sequence.token_ids[sequence.num_computed : context_lens[i]]
        block_table[i, : widths[i]] = sequence.block_table[: widths[i]]
    row_of_token = np.repeat(np.arange(len(items)), sizes)
    offsets = np.arange(query_start[-1]) - np.repeat(query_start[:-1], sizes)
    positions = np.repeat([item.sequence.num_computed for item in items], sizes) + offsets
    blocks = block_table[row_of_token, positions // block_size].astype(np.int64)
    logits_index = [query_start[i + 1] - 1 for i, item in enumerate(items) if item.reaches_end]

    def tensor(values: object, dtype: torch.dtype) -> torch.Tensor:
        return to_device(np.asarray(values), device, dtype)

    return ForwardBatch(
        token_ids=tensor(token_ids, torch.int64),
        positions=tensor(positions, torch.int64),
        slot_mapping=tensor(blocks * block_size + positions % block_size, torch.int64),
        query_start=tensor(query_start, torch.int32),
        context_lens=tensor(context_lens, torch.int32),
        block_table=tensor(block_table, torch.int32),
        logits_index=tensor(logits_index, torch.int64),
        query_start_list=query_start,
        context_lens_list=context_lens,
    )
