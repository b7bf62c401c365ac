"""A decoder layer whose residual additions are part of its matrix products or norms."""

from typing import Any

import torch
from torch import nn

from stonechat_models.backends.transformers.attention.interface import PagedContext, ProbeContext
from stonechat_models.backends.transformers.fused.attention import (
    FusedAttention,
    PositionEmbeddings,
)
from stonechat_models.backends.transformers.fused.linears import adds_in_product
from stonechat_models.backends.transformers.fused.modules import FusedRMSNorm, MergedMLP
from stonechat_models.backends.transformers.fused.moe.mixture import FusedMixture
from stonechat_models.backends.transformers.fused.products import add_product
from stonechat_models.errors import UnsupportedModelError


class FusedDecoderLayer(nn.Module):
    """Computes norm, attention, add, norm, MLP, add. Overwrites its input hidden states.

    Keeps the parts of the original layer as submodules, so that they can still be replaced later:
    quantisation replaces the linear layers.
    """

    def __init__(
        self,
        input_norm: FusedRMSNorm,
        attention: FusedAttention,
        attention_norm: FusedRMSNorm,
        mlp: nn.Module,
    ) -> None:
        super().__init__()
        self.input_layernorm = input_norm
        self.self_attn = attention
        self.post_attention_layernorm = attention_norm
        self.mlp = mlp

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        position_embeddings: PositionEmbeddings | None = None,
        stonechat: PagedContext | ProbeContext | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Maps hidden states [1, T, size] to [1, T, size]."""
        if attention_mask is not None:
            raise UnsupportedModelError("this model passes a mask of its own to its attention")
        shape = hidden_states.shape
        residual = hidden_states.reshape(-1, shape[-1])
        attended = self.self_attn.attend(
            residual, position_embeddings, stonechat, self.input_layernorm
        )
        projection, norm = self.self_attn.o_proj, self.post_attention_layernorm
        if adds_in_product(projection):
            residual = add_product(residual, projection, attended)
            if isinstance(self.mlp, MergedMLP):
                return self.mlp.add_to(residual, residual, norm).view(shape)
            normed = norm(residual)
        else:
            residual, normed = norm.add_and_norm(residual, projection(attended))
        if isinstance(self.mlp, MergedMLP):
            return self.mlp.add_to(residual, normed).view(shape)
        if isinstance(self.mlp, FusedMixture):
            return self.mlp.add_to(residual, normed).view(shape)
        # Routers and experts expect a batch dimension.
        mlp_output = self.mlp(normed.view(shape))
        return residual.view(shape).add_(
            mlp_output[0] if isinstance(mlp_output, tuple) else mlp_output
        )
