"""One kernel that rotates the projected queries and keys (RoPE) and fills the KV cache."""

import torch
import triton

from stonechat_models.backends.quantization.device_support import FP8_MAX
from stonechat_models.backends.transformers.fused.kernels import rope_and_store_kernel
from stonechat_models.backends.transformers.fused.modules import FusedRMSNorm
from stonechat_models.hardware.dependent_launch import launch_settings

HEADS_AT_ONCE = 4
"""Heads that one program handles."""
NUM_WARPS = 2


def rope_and_store(
    qkv: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    num_heads: int,
    rotary_size: int,
    norms: tuple[FusedRMSNorm, FusedRMSNorm] | None,
    is_gated: bool = False,
) -> torch.Tensor:
    """Normalise and rotate the heads of projected tokens `qkv` [rows, (H + 2 * Hkv) * D].

    Stores the keys and values in `keys` and `values` [slots, Hkv, D] at `slots` int64[T], in their
    dtype. Returns the query [rows, H, D]. Rows from T on are padding: they are not stored, and
    their queries are unspecified. Cosines and sines are [..., angles] for all rows, with one angle
    per rotated element (there are `rotary_size`) or one per pair of elements. `norms` are the norms
    of query and key heads. They are of the same variant. `is_gated`: behind each query head, `qkv`
    has as many other numbers.
    """
    num_kv_heads, size = keys.shape[1:]
    query = qkv.new_empty(qkv.shape[0], num_heads, size)
    num_tokens = slots.shape[0]
    cosines, sines = (_rows(angles) for angles in position_embeddings)
    num_parts = triton.cdiv(num_heads, HEADS_AT_ONCE) + triton.cdiv(num_kv_heads, HEADS_AT_ONCE)
    assert all(tensor.is_contiguous() for tensor in (qkv, keys, values))
    assert cosines.stride(1) == sines.stride(1) == 1
    rope_and_store_kernel[(num_tokens, num_parts)](
        qkv,
        cosines,
        sines,
        qkv if norms is None else norms[0].weight,
        qkv if norms is None else norms[1].weight,
        slots,
        query,
        keys,
        values,
        cosines.stride(0),
        sines.stride(0),
        0.0 if norms is None else norms[0].epsilon,
        0.0 if norms is None else norms[1].epsilon,
        0.0 if norms is None else norms[0].offset,
        FP8_MAX,
        HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        SIZE=size,
        QUERY_SIZE=2 * size if is_gated else size,
        ROTARY=rotary_size,
        ANGLES=cosines.shape[1],
        BLOCK=triton.next_power_of_2(size),
        BLOCK_HEADS=HEADS_AT_ONCE,
        HAS_NORM=norms is not None,
        ROUNDS_FIRST=norms is not None and norms[0].rounds_first,
        CLAMPS=keys.dtype is torch.float8_e4m3fn,
        num_warps=NUM_WARPS,
        **launch_settings(qkv.device),
    )
    return query


def _rows(angles: torch.Tensor) -> torch.Tensor:
    """[1, rows, angles] or [rows, 1, angles] as rows. Some models compute them transposed."""
    rows = angles.flatten(0, 1)
    return rows if rows.stride(1) == 1 else rows.contiguous()
