"""Runs any Hugging Face causal model over the paged KV cache."""

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.adapter_rows import StepRows
from stonechat_models.backends.transformers.attention.backend import AttentionBackend
from stonechat_models.backends.transformers.attention.interface import PagedContext, ProbeContext
from stonechat_models.backends.transformers.attention.parity_check import ParityCheck
from stonechat_models.backends.transformers.head_tap import HeadTap, head_size
from stonechat_models.backends.transformers.kv_cache import KVCache
from stonechat_models.backends.transformers.media_rows import give_own_attention, media_rows
from stonechat_models.backends.transformers.packing_check import check_packing, packed_forward
from stonechat_models.hardware.device import as_current_device
from stonechat_models.media.encode import encode_media
from stonechat_models.media.features import MediaFeatures
from stonechat_models.media.positions import grid_positions
from stonechat_models.model_info import ModelInfo
from stonechat_models.types import MediaInput


class TransformersModel:
    """Runs `module` on packed tokens. Raises `UnsupportedModelError` if packing would be wrong.

    `row_multiple`: each step's tokens are padded to a multiple of this. `probe`: the result of
    the packing check, if it ran before the module was changed; else the check runs here.
    `kv_dtype`: the dtype of the KV cache, by default the module's.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        info: ModelInfo,
        backend: AttentionBackend,
        row_multiple: int = 1,
        probe: ProbeContext | None = None,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        self.module = module
        self.backend = backend
        self.device = module.get_input_embeddings().weight.device  # type: ignore[operator]
        self.kv_dtype = kv_dtype or next(module.parameters()).dtype
        parameters = inspect.signature(module.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self._row_multiple = row_multiple
        self._is_on_cuda = info.device.startswith("cuda")
        self._cache: KVCache | None = None
        self.bidirectional_layers: frozenset[int] = frozenset()
        """The layers in which the tokens of an image attend in both directions."""
        self.adapter_rows: StepRows | None = None
        """What the layers with LoRA adapters read a step's rows from. None: there are none."""
        self.probe = probe or check_packing(module, self.device, info.vocab_size)
        kv_bytes = sum(s.num_elements for s in self.probe.shapes.values()) * self.kv_dtype.itemsize
        self.info = replace(info, attention_backend=backend.name, kv_bytes_per_token=kv_bytes)

    @property
    def attention_parity_check(self) -> ParityCheck:
        """The parity check that an attention backend must pass for this model."""
        dtype = getattr(torch, self.info.dtype)
        return ParityCheck(
            self.device,
            dtype,
            self.kv_dtype,
            self.info.block_size,
            self.probe.kinds,
            has_visible_ends=bool(self.bidirectional_layers),
        )

    def set_attention(self, backend: AttentionBackend) -> None:
        """Use another attention backend from the next step on."""
        self.backend = backend
        self.info = replace(self.info, attention_backend=backend.name)

    @property
    def hidden_size(self) -> int:
        return head_size(self.module)

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self._cache = KVCache(
            self.probe.shapes,
            num_blocks=num_blocks + 1,  # padding rows of a CUDA graph write to the last one
            block_size=block_size,
            dtype=self.kv_dtype,
            devices=self.probe.devices,
        )
        self.info = replace(self.info, num_blocks=num_blocks, block_size=block_size)

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        assert self._cache is not None
        self._cache.copy_blocks(pairs)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        assert self._cache is not None
        token_ids, positions = self._padded(batch)
        # With one token per sequence the rows are in order; else as many may be in any order.
        needs_all = batch.query_start_list == list(range(len(token_ids) + 1))
        needs_all = needs_all and len(batch.logits_index) == len(token_ids)
        if self.adapter_rows is not None:
            head_reads_all = needs_all or not self._keeps_logits
            self.adapter_rows.set(batch, head_reads_all=head_reads_all)
        media = batch.media
        seen = nullcontext() if media is None else media_rows(self.module, media)
        with as_current_device(self.device), seen:
            logits = self._logits(
                token_ids,
                positions,
                PagedContext(batch, self._cache, self.backend, self.bidirectional_layers),
                logits_to_keep=batch.logits_index if self._keeps_logits and not needs_all else None,
            )
            if not self._keeps_logits and not needs_all:
                logits = logits[batch.logits_index.to(logits.device)]
            # On CUDA the sampler's kernels convert them, which spares a copy of all logits.
            return logits if self._is_on_cuda else logits.float()

    def _logits(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        context: PagedContext,
        logits_to_keep: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `packed_forward`."""
        return packed_forward(self.module, token_ids, positions, context, logits_to_keep)

    def forward_hidden(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        with HeadTap(self.module) as tap:
            logits = self.forward(batch)
        hidden = tap.call(0)[0]
        if not self._keeps_logits:
            hidden = hidden[batch.logits_index.to(hidden.device)]
        return logits, hidden

    @torch.inference_mode()
    def encode_media(self, medium: MediaInput) -> MediaFeatures:
        give_own_attention(self.module)
        with as_current_device(self.device):
            return encode_media(self.module, medium, self.device, getattr(torch, self.info.dtype))

    def media_positions(
        self, token_ids: Sequence[int], media: Sequence[MediaInput]
    ) -> tuple[npt.NDArray[np.int64], int]:
        return grid_positions(self.module, token_ids, media)

    def _padded(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [T] and positions [T] or [3, T], padded to a multiple of `row_multiple`."""
        positions = batch.positions
        if batch.media is not None and batch.media.rope_positions is not None:
            positions = batch.media.rope_positions
        num_padding = -batch.num_tokens % self._row_multiple
        if not num_padding:
            return batch.token_ids, positions
        return F.pad(batch.token_ids, (0, num_padding)), F.pad(positions, (0, num_padding))
