"""A backend whose results have the same bits in any batch: one row at a time, keys in one order."""

import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.dense import attend_dense
from stonechat_models.backends.transformers.attention.sdpa import sequence_slots
from stonechat_models.backends.transformers.kv_cache import LayerKV


class RowBackend:
    """Each query attends alone, over exactly the keys that it sees. Slow, but always the same."""

    name = "row"

    def attend(
        self, query: torch.Tensor, kv: LayerKV, batch: ForwardBatch, spec: AttentionSpec
    ) -> torch.Tensor:
        output = query.new_empty(*query.shape[:2], kv.values.shape[2])
        ends = None if batch.visible_ends is None else batch.visible_ends.tolist()
        for i in range(batch.num_seqs):
            start, end = batch.query_start_list[i : i + 2]
            slots = sequence_slots(batch, i, kv.block_size, 0, batch.context_lens_list[i])
            for row in range(start, end):
                position = batch.context_lens_list[i] - (end - row)
                last = position + 1 if ends is None else ends[row]
                visible_slots = slots[spec.first_key(position) : last]
                key, value = (
                    x.transpose(0, 1).unsqueeze(0) for x in kv.read(visible_slots, query.dtype)
                )
                query_row = query[row].unsqueeze(1).unsqueeze(0)
                output[row] = attend_dense(query_row, key, value, None, spec).squeeze(2).squeeze(0)
        return output
