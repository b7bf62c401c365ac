"""Step messages: a `ForwardBatch` as the record that rank 0 sends to the other ranks."""

import numpy as np
import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.runtime.ipc import RunStep


def step_message(batch: ForwardBatch) -> RunStep:
    """Return the message of a batch. What is not on the CPU is copied."""
    batch = batch.to(torch.device("cpu"))
    longs = (batch.token_ids, batch.positions, batch.slot_mapping, batch.logits_index)
    ints = (batch.query_start, batch.context_lens, batch.block_table)
    return RunStep(
        num_tokens=batch.num_tokens,
        num_rows=len(batch.logits_index),
        num_seqs=batch.num_seqs,
        longs=b"".join(part.numpy().tobytes() for part in longs),
        ints=b"".join(part.numpy().tobytes() for part in ints),
    )


def read_step(message: RunStep) -> ForwardBatch:
    """Return the batch of a message, on the CPU. It has what models without states need."""
    num_tokens, num_seqs = message.num_tokens, message.num_seqs
    longs = torch.from_numpy(np.frombuffer(bytearray(message.longs), dtype=np.int64))
    ints = torch.from_numpy(np.frombuffer(bytearray(message.ints), dtype=np.int32))
    token_ids, positions, slots, rows = longs.split_with_sizes(
        [num_tokens] * 3 + [message.num_rows]
    )
    num_blocks = len(ints) - 2 * num_seqs - 1
    query_start, context_lens, table = ints.split_with_sizes([num_seqs + 1, num_seqs, num_blocks])
    return ForwardBatch(
        token_ids=token_ids,
        positions=positions,
        slot_mapping=slots,
        query_start=query_start,
        context_lens=context_lens,
        block_table=table.view(num_seqs, -1),
        logits_index=rows,
        query_start_list=query_start.tolist(),
        context_lens_list=context_lens.tolist(),
    )
