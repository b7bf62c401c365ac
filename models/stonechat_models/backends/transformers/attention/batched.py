"""A backend that decodes many sequences in one dense call, padded to the longest context."""

import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.dense import attend_dense
from stonechat_models.backends.transformers.attention.sdpa import attend_sequence
from stonechat_models.backends.transformers.kv_cache import LayerKV

MAX_PADDING = 4.0
"""A group's longest context is at most this many times its shortest, which limits the padding."""


class BatchedBackend:
    """Decodes in groups of similar context length, and prefills one sequence at a time."""

    name = "batched"

    def attend(
        self, query: torch.Tensor, kv: LayerKV, batch: ForwardBatch, spec: AttentionSpec
    ) -> torch.Tensor:
        output = query.new_empty(*query.shape[:2], kv.values.shape[2])
        starts = batch.query_start_list
        decoding = []
        for i in range(batch.num_seqs):
            if starts[i + 1] - starts[i] == 1:
                decoding.append(i)
            else:
                rows = slice(starts[i], starts[i + 1])
                output[rows] = attend_sequence(query[rows], kv, batch, i, spec)
        for group in _groups(decoding, batch.context_lens_list):
            group_rows = torch.tensor([starts[i] for i in group], device=query.device)
            output[group_rows] = _decode(query[group_rows], kv, batch, group, spec)
        return output


def _groups(sequences: list[int], context_lens: list[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for i in sorted(sequences, key=lambda i: context_lens[i]):
        if groups and context_lens[i] <= MAX_PADDING * context_lens[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _decode(
    query: torch.Tensor, kv: LayerKV, batch: ForwardBatch, group: list[int], spec: AttentionSpec
) -> torch.Tensor:
    """Attend with one query row per sequence, [N, H, Dk]. Returns [N, H, Dv]."""
    device = query.device
    lengths = [batch.context_lens_list[i] for i in group]
    firsts = [spec.first_key(length - 1) for length in lengths]
    width = max(length - first for length, first in zip(lengths, firsts, strict=True))
    index, first = torch.tensor([group, firsts], device=device)
    # Column j is position context_len - width + j: the last key is in the last column.
    columns = torch.arange(width, device=device)
    positions = batch.context_lens[index].long().unsqueeze(1) - width + columns
    mask = positions >= first.unsqueeze(1)
    positions = positions.clamp(min=0)
    blocks = batch.block_table[index].long().gather(1, positions // kv.block_size)
    slots = blocks * kv.block_size + positions % kv.block_size
    key, value = (rows.transpose(1, 2) for rows in kv.read(slots, query.dtype))
    attended = attend_dense(query.unsqueeze(2), key, value, mask.unsqueeze(1), spec)
    return attended.squeeze(2)
