"""The compiled products in plain PyTorch: the same arithmetic, step for step, as a test oracle.

A group is 32 consecutive values along k. Weights are small integers with half-precision scales.
Activations are int8 with a float32 scale per group. The products of a group are exact integers.
The groups are added in float32, in order.

Types with blocks of 256 have an integer scale for each run of 16 or 32 weights, and a float32 scale
for 256 activations. So the products of a whole block are exact integers. Up to 8 activations that
are far above the mean of their block stay floats.
"""

from dataclasses import dataclass

import gguf
import numpy as np
import torch

from stonechat_models.backends.native.bindings import GROUP

BLOCK = 256
"""Number of activations that share a scale for types with blocks of 256."""
MOST_OUTLIERS, FAR = 8, 10.0
"""How many outliers such a block may have, and how many times the mean magnitude they are above."""


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


def quantize_activations(x: torch.Tensor, size: int = GROUP) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise x[m, k] to int32[m, groups, size] in [-127, 127] and scales float32[m, groups]."""
    groups = x.reshape(x.shape[0], -1, size)
    top = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(top > 0, 127.0 / top, torch.zeros_like(top))
    return torch.round(groups * inverse).int(), (top / 127.0).squeeze(-1)


def take_outliers(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split x[m, k] into what stays in the blocks of 256 and the outliers, each float32[m, k].

    While the largest magnitude of a block is over `FAR` times the mean, it becomes an outlier.
    """
    rest = x.reshape(x.shape[0], -1, BLOCK)
    for _ in range(MOST_OUTLIERS):
        top, at = rest.abs().max(-1, keepdim=True)
        is_far = top > FAR * rest.abs().double().mean(-1, keepdim=True).float()
        rest = rest.scatter(-1, at, torch.where(is_far, 0.0, rest.gather(-1, at)))
    rest = rest.flatten(1)
    return rest, x - rest


def block_activations(x: torch.Tensor) -> torch.Tensor:
    """Return float32 x[m, k] as products with blocks of 256 see it, float64[m, k]."""
    rest, outliers = take_outliers(x)
    quantised, scale = quantize_activations(rest, BLOCK)
    return (quantised.double() * scale.double().unsqueeze(-1)).flatten(1) + outliers.double()


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """W[n, k] = scale * run_scale * quantised + low * run_low, per block of 256 and run of 16."""

    quantised: torch.Tensor
    """int64[n, blocks, 16, 16]"""
    run_scale: torch.Tensor
    """int64[n, blocks, 16]"""
    run_low: torch.Tensor
    """int64[n, blocks, 16]"""
    scale: torch.Tensor
    """float32[n, blocks]"""
    low: torch.Tensor
    """float32[n, blocks]; zero for a type without lows."""


def weights_of_large_blocks(type_name: str, blocks: np.ndarray) -> BlockWeights:
    """Unpack rows of GGUF blocks, uint8[n, bytes], of type Q2_K, Q4_K or Q6_K."""
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    raw = np.ascontiguousarray(blocks).reshape(blocks.shape[0], -1, sizes[1]).astype(np.int64)
    at, low_at = {"Q2_K": (80, 82), "Q4_K": (0, 2), "Q6_K": (208, None)}[type_name]
    run_low = np.zeros_like(raw[..., :16])
    if type_name == "Q2_K":
        run_scale, run_low = raw[..., :16] & 15, raw[..., :16] >> 4
        bits = [raw[..., 16 + 32 * (i // 4) :][..., :32] >> 2 * (i % 4) & 3 for i in range(8)]
    elif type_name == "Q4_K":
        a, b, c = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
        run_scale = np.concatenate([a & 63, c & 15 | a >> 6 << 4], -1).repeat(2, -1)
        run_low = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], -1).repeat(2, -1)
        bits = [raw[..., 16 + 32 * (i // 2) :][..., :32] >> 4 * (i % 2) & 15 for i in range(8)]
    else:
        run_scale = (raw[..., 192:208] + 128) % 256 - 128
        low = [raw[..., 64 * (i // 4) + 32 * (i % 2) :][..., :32] for i in range(8)]
        high = [raw[..., 128 + 32 * (i // 4) :][..., :32] >> 2 * (i % 4) & 3 for i in range(8)]
        bits = [(low[i] >> 4 * (i // 2 % 2) & 15 | high[i] << 4) - 32 for i in range(8)]
    quantised = np.concatenate(bits, -1).reshape(*raw.shape[:2], 16, 16)

    def halves(at: int | None) -> torch.Tensor:
        if at is None:
            return torch.zeros(raw.shape[:2])
        pair = np.ascontiguousarray(raw[..., at : at + 2].astype(np.uint8))
        return torch.from_numpy(pair.view(np.float16)[..., 0].astype(np.float32))

    return BlockWeights(
        quantised=torch.from_numpy(quantised),
        run_scale=torch.from_numpy(run_scale),
        run_low=torch.from_numpy(run_low),
        scale=halves(at),
        low=-halves(low_at),
    )


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


def matmul_of_blocks(x: torch.Tensor, weights: BlockWeights) -> torch.Tensor:
    """Return x[m, k] W^T, float32[m, n]. Blocks are added in order with fused multiply-adds."""
    rest, outliers = take_outliers(x)
    outliers = outliers.reshape(len(x), -1, BLOCK)
    quantised, scale = quantize_activations(rest, BLOCK)
    runs = quantised.reshape(*quantised.shape[:2], 16, 16).double()
    scaled = (weights.quantised * weights.run_scale.unsqueeze(-1)).double()
    products = torch.einsum("mbri,nbri->mnb", runs, scaled).float()
    lows = torch.einsum("mbr,nbr->mnb", runs.sum(-1), weights.run_low.double()).float()
    total = torch.zeros(x.shape[0], len(weights.scale))
    for b in range(weights.scale.shape[1]):
        integers = (weights.quantised * weights.run_scale.unsqueeze(-1))[:, b].flatten(1).float()
        columns = weights.scale[:, b, None] * integers
        lows_of_runs = weights.run_low[:, b].float().repeat_interleave(16, -1)
        columns = _fused(weights.low[:, b, None].expand_as(columns), lows_of_runs, columns)
        for row in range(len(x)):
            by_size = outliers[row, b].abs().sort(descending=True).indices[:MOST_OUTLIERS]
            for at in by_size.tolist():
                factor = outliers[row, b, at].expand_as(total[row])
                total[row] = _fused(factor, columns[:, at], total[row])
        value = weights.scale[:, b] * products[..., b]
        value = _fused(weights.low[:, b].expand_as(value), lows[..., b], value)
        total = _fused(scale[:, b, None].expand_as(value), value, total)
    return total


def _fused(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a * b + c, rounded once (except in the rare case that float64 rounds to a float32 tie)."""
    return (a.double() * b.double() + c.double()).float()
