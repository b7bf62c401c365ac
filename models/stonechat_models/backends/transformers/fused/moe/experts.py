"""The experts of a mixture as grouped products: no waiting for the device, and static shapes."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import triton
from torch import nn

from stonechat_models.backends.transformers.fused.moe import expert_kernels as kernels
from stonechat_models.backends.transformers.fused.moe.expert_kernels import (
    expert_product_kernel,
    sort_pairs_kernel,
    weighted_sum_kernel,
)
from stonechat_models.hardware.dependent_launch import launch_settings

SORTED_AT_ONCE = 1024
"""Pairs that a program of the sort handles at once."""
SUM_BLOCK = 1024


class Tile(NamedTuple):
    """The tile of one program of the product."""

    pairs: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int


TILES = {
    16: Tile(16, 64, 128, 4, 4),
    64: Tile(64, 128, 64, 4, 4),
    128: Tile(128, 128, 64, 8, 3),
}
"""Tiles in half precision, by pairs. Each fits in 99 KiB of shared memory. Not measured yet."""
FLOAT32_TILES = {16: Tile(16, 32, 32, 4, 2), 32: Tile(32, 32, 32, 4, 2)}


def tiles_of(dtype: torch.dtype) -> dict[int, Tile]:
    """All tiles for weights of this dtype."""
    return FLOAT32_TILES if dtype == torch.float32 else TILES


@dataclass(frozen=True, slots=True)
class Activation:
    """What happens between the two products of an expert.

    Of a gate and its counterpart `up`, act(min(gate, limit)) * (clamp(up, -limit, limit) + offset).
    Without a gate, act(up). `kind` is one of the constants of `expert_kernels`.
    """

    kind: int
    is_gated: bool = True
    is_interleaved: bool = False
    alpha: float = 1.0
    limit: float = float("inf")
    offset: float = 0.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Applies it to float32 rows, as the kernel does. Returns [rows, size], of [rows, size] or,
        with a gate, [rows, 2 * size]."""
        if not self.is_gated:
            return self._act(x)
        gate, up = (x[..., ::2], x[..., 1::2]) if self.is_interleaved else x.chunk(2, dim=-1)
        up = up.clamp(-self.limit, self.limit) + self.offset
        return self._act(gate.clamp(max=self.limit)) * up

    def _act(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == kernels.SILU.value:
            return x * torch.sigmoid(self.alpha * x)
        if self.kind == kernels.RELU_SQUARED.value:
            return x.relu().square()
        is_exact = self.kind == kernels.GELU.value
        return nn.functional.gelu(x, approximate="none" if is_exact else "tanh")


class Groups(NamedTuple):
    """Pairs of a token and an expert, in tiles of one expert each. See `expert_kernels`."""

    tile: Tile
    experts: torch.Tensor
    pairs: torch.Tensor | None
    """None: each pair is a tile of its own."""
    num_pairs: int


def group(expert_ids: torch.Tensor, num_experts: int, tile: Tile) -> Groups:
    """Group the pairs of tokens and experts int[T, K] by expert. Nothing waits for the device."""
    num_tokens, num_pairs = len(expert_ids), expert_ids.numel()
    ids = expert_ids.contiguous()
    if num_tokens == 1:  # its experts differ
        return Groups(tile, ids, None, num_pairs)
    num_used = min(num_experts, num_pairs)
    num_tiles = num_used + (num_pairs - num_used) // tile.pairs
    experts = torch.empty(num_tiles, dtype=torch.int32, device=ids.device)
    pairs = torch.empty(num_tiles, tile.pairs, dtype=torch.int32, device=ids.device)
    sort_pairs_kernel[(num_experts + 1,)](
        ids,
        experts,
        pairs,
        num_pairs,
        num_tiles,
        tile.pairs,
        NUM_EXPERTS=num_experts,
        BLOCK_EXPERTS=triton.next_power_of_2(num_experts + 1),
        BLOCK=SORTED_AT_ONCE,
        **launch_settings(ids.device),
    )
    return Groups(tile, experts, pairs, num_pairs)


def choose_tile(num_tokens: int, top_k: int, num_experts: int, dtype: torch.dtype) -> Tile:
    """The tile for so many tokens: about twice the pairs that an expert gets on average."""
    expected = min(num_tokens, 2 * num_tokens * top_k // num_experts)
    tiles = tiles_of(dtype)
    return tiles[next((pairs for pairs in tiles if pairs >= expected), max(tiles))]


class ExpertMatrices(Protocol):
    """A module with the matrices of all experts, float or quantised."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(experts, outputs of each, inputs of each)."""

    @property
    def weight(self) -> torch.Tensor:
        """Has the dtype and the device of the products."""

    def __call__(
        self, rows: torch.Tensor, groups: Groups, top_k: int, activation: Activation
    ) -> torch.Tensor:
        """As `ExpertLinear.forward`."""


class ExpertLinear(nn.Module):
    """The matrices of all experts: `weight` [E, N, K], or [E, K, N] if `is_transposed`."""

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, *, is_transposed: bool
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.is_transposed = is_transposed

    @property
    def shape(self) -> tuple[int, int, int]:
        """(experts, outputs of each, inputs of each)."""
        experts, rows, columns = self.weight.shape
        return (experts, columns, rows) if self.is_transposed else (experts, rows, columns)

    def forward(
        self, rows: torch.Tensor, groups: Groups, top_k: int, activation: Activation
    ) -> torch.Tensor:
        """Returns act(expert's matrix times row) for each pair p, whose row is p // `top_k`.

        `rows` are contiguous, [pairs / top_k, K]. The output is [pairs, N], or [pairs, N / 2] with
        a gated activation.
        """
        tile, weight = groups.tile, self.weight
        _, num_columns, size = self.shape
        stride_column, stride_inner = weight.stride(1), weight.stride(2)
        if self.is_transposed:
            stride_column, stride_inner = stride_inner, stride_column
        width = num_columns // 2 if activation.is_gated else num_columns
        output = rows.new_empty(groups.num_pairs, width)
        block_columns = min(tile.columns, max(16, triton.next_power_of_2(num_columns)))
        expert_product_kernel[(groups.experts.numel(), triton.cdiv(num_columns, block_columns))](
            rows,
            weight,
            weight if self.bias is None else self.bias,
            groups.experts,
            groups.experts if groups.pairs is None else groups.pairs,
            output,
            groups.num_pairs,
            top_k,
            weight.stride(0),
            stride_column,
            stride_inner,
            activation.alpha,
            activation.limit,
            activation.offset,
            COLUMNS=num_columns,
            SIZE=size,
            BLOCK_M=tile.pairs,
            BLOCK_N=block_columns,
            BLOCK_K=min(tile.inner, max(16, triton.next_power_of_2(size))),
            IS_SORTED=groups.pairs is not None,
            ACTIVATION=activation.kind,
            IS_GATED=activation.is_gated,
            IS_INTERLEAVED=activation.is_interleaved,
            HAS_BIAS=self.bias is not None,
            PRECISION="ieee",
            UPCAST=rows.dtype is torch.bfloat16 and rows.device.type == "cpu",
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **launch_settings(rows.device),
        )
        return output


NO_ACTIVATION = Activation(kernels.NONE.value, is_gated=False)


class FusedExperts(nn.Module):
    """Replaces an experts module that has the common layout of transformers. Shares its weights."""

    def __init__(self, up: ExpertMatrices, down: ExpertMatrices, activation: Activation) -> None:
        super().__init__()
        self.up = up
        self.down = down
        self.activation = activation
        self.num_experts = up.shape[0]

    def forward(
        self,
        hidden_states: torch.Tensor,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        tile: Tile | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Apply experts int[T, K] with weights [T, K] to tokens [T, H]; return [T, H].

        The K rows of a token are added in float32, always in the same order. `tile` is chosen by
        the number of tokens if it is not given. With a contiguous `residual` [T, H], the result is
        added to it in place, and it is returned.
        """
        num_tokens, top_k = expert_ids.shape
        rows = hidden_states.contiguous()
        tile = tile or choose_tile(num_tokens, top_k, self.num_experts, rows.dtype)
        groups = group(expert_ids, self.num_experts, tile)
        inner = self.up(rows, groups, top_k, self.activation)
        products = self.down(inner, groups, 1, NO_ACTIVATION)
        output = torch.empty_like(rows) if residual is None else residual
        assert output.is_contiguous()
        weighted_sum_kernel[(num_tokens, triton.cdiv(rows.shape[1], SUM_BLOCK))](
            products,
            expert_weights.contiguous(),
            output,
            top_k,
            SIZE=rows.shape[1],
            BLOCK=SUM_BLOCK,
            ADDS=residual is not None,
            **launch_settings(rows.device),
        )
        return output
