"""Self-attention with one product for query, key and value, and one kernel up to the KV cache."""

from typing import Any

import torch
from torch import nn

from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.interface import PagedContext, ProbeContext
from stonechat_models.backends.transformers.fused.linears import way_of
from stonechat_models.backends.transformers.fused.modules import FusedRMSNorm
from stonechat_models.backends.transformers.fused.products import normed_product
from stonechat_models.backends.transformers.fused.rotary import rope_and_store
from stonechat_models.backends.transformers.fused.row_products.few_rows import (
    FewRowsTile,
    few_rows_qkv,
)
from stonechat_models.errors import UnsupportedModelError

PositionEmbeddings = tuple[torch.Tensor, torch.Tensor]


class FusedAttention(nn.Module):
    """Replaces a decoder layer's `self_attn`. Runs on packed tokens only.

    `rotary_size`: how many of a head's elements RoPE rotates, 0 for a layer without positions.
    `is_gated`: behind the query of each head, `qkv` has a gate for the head's output.
    """

    def __init__(
        self,
        qkv: nn.Module,
        output: nn.Module,
        *,
        layer: int,
        num_heads: int,
        num_kv_heads: int,
        head_size: int,
        rotary_size: int,
        norms: tuple[FusedRMSNorm, FusedRMSNorm] | None,
        spec: AttentionSpec,
        is_gated: bool = False,
    ) -> None:
        super().__init__()
        self.qkv_proj = qkv
        self.o_proj = output
        self.layer_idx = layer
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_size
        self.rotary_size = rotary_size
        self.is_gated = is_gated
        self.q_norm = None if norms is None else norms[0]
        self.k_norm = None if norms is None else norms[1]
        self.sinks = spec.sinks
        self.spec = spec

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: PositionEmbeddings | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        stonechat: PagedContext | ProbeContext | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Maps hidden states [N, T, size] to the attention's output [N, T, size]."""
        if attention_mask is not None:
            raise UnsupportedModelError("this model passes a mask of its own to its attention")
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        attended = self.attend(rows, position_embeddings, stonechat)
        return self.o_proj(attended).view(hidden_states.shape), None

    def attend(
        self,
        rows: torch.Tensor,
        position_embeddings: PositionEmbeddings | None,
        context: PagedContext | ProbeContext | None,
        norm: FusedRMSNorm | None = None,
    ) -> torch.Tensor:
        """Maps norm(hidden states [T, size]) to the input of the output projection, [T, H * D]."""
        if context is None or position_embeddings is None:
            raise UnsupportedModelError("fused attention runs on packed tokens only")
        if isinstance(context, PagedContext):
            slots, keys, values = context.places(self.layer_idx, rows.device)
            query, gate = self.project(rows, norm, position_embeddings, slots, keys, values)
            attended = context.attend_kept(self.layer_idx, query, self.spec)
        else:
            slots = torch.arange(len(rows), device=rows.device)
            keys = rows.new_empty(len(rows), self.num_kv_heads, self.head_dim)
            values = torch.empty_like(keys)
            query, gate = self.project(rows, norm, position_embeddings, slots, keys, values)
            attended = context.attend(self.layer_idx, query, keys, values, self.spec)
        if gate is not None:
            attended = attended * torch.sigmoid(gate)
        return attended.reshape(len(rows), -1)

    def project(
        self,
        rows: torch.Tensor,
        norm: FusedRMSNorm | None,
        position_embeddings: PositionEmbeddings,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps norm(hidden states) to queries and gates [T, H, D], and stores keys and values at
        `slots`."""
        way = way_of(self.qkv_proj, len(rows))
        turns = self.turns_in_product and keys.dtype == rows.dtype and len(slots) == len(rows)
        if isinstance(way, FewRowsTile) and turns:
            query = few_rows_qkv(
                rows, self.qkv_proj, way, position_embeddings, slots, keys, values, norm=norm
            )
            return query, None
        norms = None
        if self.q_norm is not None and self.k_norm is not None:
            norms = (self.q_norm, self.k_norm)
        qkv = normed_product(rows, norm, self.qkv_proj).contiguous()
        query = rope_and_store(
            qkv,
            position_embeddings,
            slots,
            keys,
            values,
            num_heads=self.num_heads,
            rotary_size=self.rotary_size,
            norms=norms,
            is_gated=self.is_gated,
        )
        if not self.is_gated:
            return query, None
        both = qkv[:, : 2 * self.num_heads * self.head_dim].view(len(qkv), self.num_heads, -1)
        return query, both[:, :, self.head_dim :]

    @property
    def turns_in_product(self) -> bool:
        """Whether a product for a few rows may rotate what it computes: whole heads, not normed."""
        is_whole = self.rotary_size == self.head_dim and not self.is_gated
        return self.q_norm is None and is_whole
