"""Attention on dense tensors. It defines every backend's result; the PyTorch backends call it."""

import torch
import torch.nn.functional as F

from stonechat_models.backends.transformers.attention.backend import AttentionSpec


def visible(
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    spec: AttentionSpec,
    visible_ends: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which keys a query sees: bool[..., Q, K] from positions [..., Q] and [..., K].

    `visible_ends` [..., Q]: the position after the last key that each query sees, if it is not the
    query's own.
    """
    queries, keys = query_positions.unsqueeze(-1), key_positions.unsqueeze(-2)
    mask = keys <= queries if visible_ends is None else keys < visible_ends.unsqueeze(-1)
    if spec.sliding_window is not None:
        mask = mask & (queries - keys < spec.sliding_window)
    if spec.chunk_size is not None:
        mask = mask & (keys >= queries // spec.chunk_size * spec.chunk_size)
    return mask


def attend_dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Query [B, H, Q, Dk], key [B, Hkv, K, Dk], value [B, Hkv, K, Dv], mask bool[B, Q, K] or None.

    Returns [B, H, Q, Dv]. If a row's mask is all False, its result is unspecified, finite or NaN.
    """
    if spec.is_plain:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask.unsqueeze(1),
            scale=spec.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    num_groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(num_groups, dim=1)
    value = value.repeat_interleave(num_groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)).float() * spec.scaling
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(1), float("-inf"))
    if spec.sinks is not None:
        sinks = spec.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, sinks), dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : key.shape[2]]
    return torch.matmul(weights.to(value.dtype), value)
