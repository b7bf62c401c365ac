"""The reference backend: one sequence at a time, dense, on any device."""

import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.dense import attend_dense, visible
from stonechat_models.backends.transformers.kv_cache import LayerKV


class SdpaBackend:
    """Gathers each sequence's keys and values and calls dense attention on them."""

    name = "sdpa"

    def attend(
        self, query: torch.Tensor, kv: LayerKV, batch: ForwardBatch, spec: AttentionSpec
    ) -> torch.Tensor:
        output = query.new_empty(*query.shape[:2], kv.values.shape[2])
        for i in range(batch.num_seqs):
            rows = slice(batch.query_start_list[i], batch.query_start_list[i + 1])
            output[rows] = attend_sequence(query[rows], kv, batch, i, spec)
        return output


def attend_sequence(
    query: torch.Tensor, kv: LayerKV, batch: ForwardBatch, i: int, spec: AttentionSpec
) -> torch.Tensor:
    """Attend with sequence i's query rows [Q, H, Dk] over its whole context. Returns [Q, H, Dv]."""
    context_len = batch.context_lens_list[i]
    num_queries = query.shape[0]
    first = spec.first_key(context_len - num_queries)
    slots = sequence_slots(batch, i, kv.block_size, first, context_len)
    key, value = (rows.transpose(0, 1).unsqueeze(0) for rows in kv.read(slots, query.dtype))
    mask = None
    if num_queries > 1:
        positions = torch.arange(first, context_len, device=query.device)
        ends = batch.visible_ends
        if ends is not None:
            ends = ends[batch.query_start_list[i] : batch.query_start_list[i + 1]]
        mask = visible(positions[-num_queries:], positions, spec, ends).unsqueeze(0)
    attended = attend_dense(query.transpose(0, 1).unsqueeze(0), key, value, mask, spec)
    return attended.squeeze(0).transpose(0, 1)


def sequence_slots(
    batch: ForwardBatch, i: int, block_size: int, first: int, last: int
) -> torch.Tensor:
    """Cache slots of positions first … last - 1 of sequence i: int64[last - first]."""
    positions = torch.arange(first, last, device=batch.block_table.device)
    return (
        batch.block_table[i, positions // block_size].long() * block_size + positions % block_size
    )
