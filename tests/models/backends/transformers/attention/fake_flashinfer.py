"""The prefill wrapper that flashinfer-python 0.7.2 documents, in plain loops.

`plan` and `run` have the parameters of the real methods, in the same order, up to the last one that
is used.
"""

import math

import torch


class BatchPrefillWithPagedKVCacheWrapper:
    def __init__(self, float_workspace_buffer, kv_layout="NHD"):
        assert float_workspace_buffer.dtype == torch.uint8
        assert kv_layout == "NHD"
        self.num_plans = 0
        self.num_runs = 0

    def plan(
        self,
        qo_indptr,
        paged_kv_indptr,
        paged_kv_indices,
        paged_kv_last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim_qk,
        page_size,
        head_dim_vo=None,
        custom_mask=None,
        packed_custom_mask=None,
        causal=False,
        pos_encoding_mode="NONE",
        use_fp16_qk_reduction=False,
        sm_scale=None,
        window_left=-1,
        logits_soft_cap=None,
        rope_scale=None,
        rope_theta=None,
        q_data_type="float16",
        kv_data_type=None,
    ):
        tables = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert all(table.dtype == torch.int32 for table in tables)
        assert paged_kv_indices.shape == (int(paged_kv_indptr[-1]),)
        assert bool((paged_kv_last_page_len >= 1).all())
        assert bool((paged_kv_last_page_len <= page_size).all())
        assert num_qo_heads % num_kv_heads == 0
        assert custom_mask is None
        assert packed_custom_mask is None
        self.qo, self.kv, self.pages, self.last = (table.tolist() for table in tables)
        self.shape = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        self.causal = causal
        self.scale = 1 / math.sqrt(head_dim_qk) if sm_scale is None else sm_scale
        self.window_left = window_left
        self.soft_cap = logits_soft_cap or 0.0
        self.dtypes = (q_data_type, kv_data_type or q_data_type)
        self.num_plans += 1

    def run(self, q, paged_kv_cache, *, out=None):
        keys, values = paged_kv_cache
        heads, kv_heads, head_dim, page_size = self.shape
        assert q.shape == (self.qo[-1], heads, head_dim)
        assert keys.shape[1:] == values.shape[1:] == (page_size, kv_heads, head_dim)
        assert (q.dtype, keys.dtype) == self.dtypes
        assert q.is_contiguous()
        assert keys.is_contiguous()
        assert out is None or out.shape == q.shape
        out = torch.empty_like(q) if out is None else out
        for i in range(len(self.last)):
            pages = self.pages[self.kv[i] : self.kv[i + 1]]
            length = (len(pages) - 1) * page_size + self.last[i]
            key, value = (c[pages].flatten(0, 1)[:length].double() for c in (keys, values))
            for row in range(self.qo[i], self.qo[i + 1]):
                position = length - (self.qo[i + 1] - row)
                last = position + 1 if self.causal else length
                first = max(0, position - self.window_left) if self.window_left >= 0 else 0
                for head in range(heads):
                    kv_head = head // (heads // kv_heads)
                    scores = key[first:last, kv_head] @ q[row, head].double() * self.scale
                    if self.soft_cap > 0:
                        scores = self.soft_cap * torch.tanh(scores / self.soft_cap)
                    out[row, head] = (scores.softmax(0) @ value[first:last, kv_head]).to(out.dtype)
        self.num_runs += 1
        return out
