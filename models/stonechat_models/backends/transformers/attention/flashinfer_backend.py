"""FlashInfer, if it is installed, for steps that prefill. Triton computes everything else.

Written against the signatures of flashinfer-python 0.7.2: `BatchPrefillWithPagedKVCacheWrapper`,
its `plan` and its `run`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionBackend, AttentionSpec
from stonechat_models.backends.transformers.kv_cache import LayerKV
from stonechat_models.hardware.transfers import to_device

WORKSPACE_BYTES = 256 << 20
HEAD_SIZES = frozenset({64, 128, 256})
DTYPES = frozenset({torch.float16, torch.bfloat16})


@dataclass(slots=True)
class PagedTable:
    """A step's sequences in FlashInfer's layout: all sequences' pages, one after the other."""

    query_start: torch.Tensor
    """int32[N + 1], on the host"""
    page_start: torch.Tensor
    """int32[N + 1], on the host: where each sequence's pages start"""
    last_page_len: torch.Tensor
    """int32[N], on the host: tokens in each sequence's last page, 1 … block size"""
    pages: torch.Tensor
    """int32[page_start[-1]], on the device"""

    @classmethod
    def of(cls, batch: ForwardBatch, block_size: int) -> "PagedTable":
        lengths = np.asarray(batch.context_lens_list, dtype=np.int64)
        widths = -(-lengths // block_size)
        page_start = np.concatenate(([0], np.cumsum(widths)))
        rows = np.repeat(np.arange(len(lengths)), widths)
        columns = np.arange(page_start[-1]) - np.repeat(page_start[:-1], widths)
        entries = to_device(rows * batch.block_table.shape[1] + columns, batch.block_table.device)
        return cls(
            query_start=torch.tensor(batch.query_start_list, dtype=torch.int32),
            page_start=torch.from_numpy(page_start.astype(np.int32)),
            last_page_len=torch.from_numpy((lengths - (widths - 1) * block_size).astype(np.int32)),
            pages=batch.block_table.reshape(-1)[entries],
        )


class PlannedWrapper:
    """A FlashInfer wrapper, and the step that it is planned for."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper
        self._batch: ForwardBatch | None = None
        self._copy_done: torch.cuda.Event | None = None

    def plan(self, batch: ForwardBatch, table: PagedTable, **settings: Any) -> None:
        """Plan for a step, once for all its layers.

        A plan is copied to the device from page-locked memory, which the next plan overwrites. So
        the next plan waits until this copy is done.
        """
        if self._batch is batch:
            return
        if self._copy_done is not None:
            self._copy_done.synchronize()
        self._batch = None
        self.wrapper.plan(
            table.query_start, table.page_start, table.pages, table.last_page_len, **settings
        )
        self._batch = batch
        if table.pages.device.type == "cuda":
            self._copy_done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copy_done.record(torch.cuda.current_stream(table.pages.device))


class FlashInferBackend:
    """Uses FlashInfer for steps that prefill, if it supports the layer; else `fallback`.

    Its masks are causal, so `fallback` computes the layers in which tokens of an image see later
    ones.
    FlashInfer needs half precision in query and cache, keys and values of equal size, a size of
    `HEAD_SIZES`, and neither sinks nor chunks. It compiles a kernel for each head size, type and
    feature on first use.
    """

    name = "flashinfer"

    def __init__(self, library: Any, fallback: AttentionBackend, device: torch.device) -> None:
        """`library`: the module `flashinfer`."""
        self._library = library
        self.fallback = fallback
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._wrappers: dict[tuple[object, ...], PlannedWrapper] = {}
        self._table: tuple[ForwardBatch, PagedTable] | None = None

    @classmethod
    def for_device(cls, device: torch.device, fallback: AttentionBackend) -> "FlashInferBackend":
        """Raises whatever the import of FlashInfer raises."""
        from importlib import import_module

        return cls(import_module("flashinfer"), fallback, device)

    def attend(
        self, query: torch.Tensor, kv: LayerKV, batch: ForwardBatch, spec: AttentionSpec
    ) -> torch.Tensor:
        is_causal = batch.visible_ends is None
        decodes = batch.num_tokens == batch.num_seqs
        if decodes or not is_causal or not self._supports(query, kv, spec):
            return self.fallback.attend(query, kv, batch, spec)
        planned = self._plan(query, kv, batch, spec)
        output: torch.Tensor = planned.wrapper.run(
            query.contiguous(), kv.pages(), out=query.new_empty(query.shape)
        )
        return output

    def _supports(self, query: torch.Tensor, kv: LayerKV, spec: AttentionSpec) -> bool:
        keys, values = kv.keys, kv.values
        return (
            query.device == self._workspace.device
            and query.dtype in DTYPES
            and query.dtype == keys.dtype == values.dtype
            and keys.shape[2] == values.shape[2]
            and keys.shape[2] in HEAD_SIZES
            and spec.sinks is None
            and spec.chunk_size is None
        )

    def _plan(
        self, query: torch.Tensor, kv: LayerKV, batch: ForwardBatch, spec: AttentionSpec
    ) -> PlannedWrapper:
        keys, block_size = kv.keys, kv.block_size
        shape = (query.shape[1], keys.shape[1], keys.shape[2], block_size, query.dtype)
        key = (*shape, spec.scaling, spec.sliding_window, spec.softcap)
        planned = self._wrappers.get(key)
        if planned is None:
            wrapper = self._library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD")
            planned = self._wrappers[key] = PlannedWrapper(wrapper)
        planned.plan(
            batch,
            self._table_of(batch, block_size),
            num_qo_heads=query.shape[1],
            num_kv_heads=keys.shape[1],
            head_dim_qk=keys.shape[2],
            page_size=block_size,
            causal=True,
            sm_scale=spec.scaling,
            # A query at position p sees the keys from p - window_left on.
            window_left=-1 if spec.sliding_window is None else spec.sliding_window - 1,
            logits_soft_cap=spec.softcap,
            q_data_type=query.dtype,
            kv_data_type=keys.dtype,
        )
        return planned

    def _table_of(self, batch: ForwardBatch, block_size: int) -> PagedTable:
        if self._table is None or self._table[0] is not batch:
            self._table = (batch, PagedTable.of(batch, block_size))
        return self._table[1]
