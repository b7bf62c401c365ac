"""The compiled products in plain PyTorch: the same arithmetic, step for step, as a test oracle.

A group is 32 consecutive values along k. Weights are small integers with half-precision scales.
Activations are int8 with a float32 scale per group. The products of a group are exact integers.
The groups are added in float32, in order.
"""

from dataclasses import dataclass

import gguf
import numpy as np
import torch

from stonechat_models.backends.native.bindings import GROUP


@dataclass(frozen=True, slots=True)
class GroupedWeights:
    """W[n, k] = scale * quantised + low, per group."""

    quantised: torch.Tensor
    """int32[n, groups, 32]"""
    scale: torch.Tensor
    """float32[n, groups]"""
    low: torch.Tensor
    """float32[n, groups]; zero for a type without lows."""

    def dequantized(self) -> torch.Tensor:
        """float32[n, k]"""
        values = self.quantised * self.scale.unsqueeze(-1) + self.low.unsqueeze(-1)
        return values.flatten(1)


def weights_of_blocks(type_name: str, blocks: np.ndarray) -> GroupedWeights:
    """Unpack rows of GGUF blocks, uint8[n, bytes], of type Q4_0, Q4_1 or Q8_0."""
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    raw = np.ascontiguousarray(blocks).reshape(blocks.shape[0], -1, sizes[1])
    halves = raw[..., : 4 if type_name == "Q4_1" else 2].copy().view(np.float16)
    scale = torch.from_numpy(halves[..., 0].astype(np.float32))
    low = torch.zeros_like(scale)
    if type_name == "Q8_0":
        quantised = raw[..., 2:].view(np.int8).astype(np.int32)
        return GroupedWeights(torch.from_numpy(quantised), scale, low)
    packed = raw[..., -GROUP // 2 :]
    quantised = np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.int32)
    if type_name == "Q4_1":
        low = torch.from_numpy(halves[..., 1].astype(np.float32))
    else:
        quantised -= 8
    return GroupedWeights(torch.from_numpy(quantised), scale, low)


def quantize_activations(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise x[m, k] to int32[m, groups, 32] in [-127, 127] and scales float32[m, groups]."""
    groups = x.reshape(x.shape[0], -1, GROUP)
    top = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(top > 0, 127.0 / top, torch.zeros_like(top))
    return torch.round(groups * inverse).int(), (top / 127.0).squeeze(-1)


def split_activations(x: torch.Tensor) -> torch.Tensor:
    """Return float32 x as the sums of two bfloat16 numbers that tiles multiply."""
    first = x.bfloat16().float()
    return first + (x - first).bfloat16().float()


def integer_products(quantised: torch.Tensor, weights: GroupedWeights) -> torch.Tensor:
    """Exact products of each group, int32[m, n, groups]."""
    return torch.einsum("mgk,ngk->mng", quantised.double(), weights.quantised.double()).int()


def matmul(x: torch.Tensor, weights: GroupedWeights) -> torch.Tensor:
    """Return x[m, k] W^T, float32[m, n]. Groups are added in order with fused multiply-adds."""
    quantised, scale = quantize_activations(x)
    products = integer_products(quantised, weights)
    sums = quantised.sum(-1).float() * scale
    total = torch.zeros(x.shape[0], weights.quantised.shape[0])
    for g in range(weights.quantised.shape[1]):
        factor = weights.scale[:, g] * scale[:, g, None]
        total = _fused(products[..., g].float(), factor, total)
        total = _fused(weights.low[:, g].expand_as(total), sums[:, g, None], total)
    return total


def _fused(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a * b + c, rounded once (except in the rare case that float64 rounds to a float32 tie)."""
    return (a.double() * b.double() + c.double()).float()
