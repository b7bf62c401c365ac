"""Experts whose weights stay quantised as a file stores them."""

from enum import Enum
from typing import NamedTuple

import torch
import triton
from torch import nn

from stonechat_models.backends.quantization.codes.code_products import constants
from stonechat_models.backends.quantization.codes.coded_linear import stand_in
from stonechat_models.backends.quantization.codes.codes import Codes
from stonechat_models.backends.transformers.fused.moe.coded_expert_kernel import (
    coded_product_kernel,
)
from stonechat_models.backends.transformers.fused.moe.experts import Activation, Groups
from stonechat_models.hardware.dependent_launch import launch_settings


class Rows(Enum):
    """Where the rows of gates and of their counterparts lie in the codes of all experts."""

    HALVES = "in each expert the gates, then the others"
    PAIRS = "in each expert a gate, then its counterpart, and so on"
    APART = "the gates of all experts, then the others of all experts"


class CodedTile(NamedTuple):
    """The tile of one program of the product. A unit is 32 inputs."""

    pairs: int
    columns: int
    units: int
    num_warps: int
    num_stages: int


CODED_TILES = {
    16: CodedTile(16, 32, 4, 4, 3),
    64: CodedTile(64, 64, 2, 4, 3),
    128: CodedTile(128, 64, 2, 4, 3),
}
"""By pairs. Not measured yet."""
FLOAT32_CODED_TILES = {16: CodedTile(16, 32, 1, 4, 2), 32: CodedTile(32, 32, 1, 4, 2)}
INTERPRETED_COLUMNS = 256


class CodedExpertLinear(nn.Module):
    """The matrices of all experts as `codes` [E * N, K]. Used as `ExpertLinear` is.

    `rows` says where gates lie; it has no meaning without gates. `bias` [E, N] has the order of the
    codes, unless they are APART: then it has gates first in each expert.
    """

    def __init__(
        self,
        codes: Codes,
        num_experts: int,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        rows: Rows = Rows.HALVES,
    ) -> None:
        super().__init__()
        self.codes = codes
        self.rows = rows
        self.shape = (num_experts, codes.shape[0] // num_experts, codes.shape[1])
        self.weight = stand_in(torch.Size(self.shape), dtype, codes.low.device)
        self.bias = bias

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.num_bytes

    def forward(
        self, rows: torch.Tensor, groups: Groups, top_k: int, activation: Activation
    ) -> torch.Tensor:
        """As in `ExpertLinear`."""
        num_columns = self.shape[1]
        tiles = FLOAT32_CODED_TILES if rows.dtype == torch.float32 else CODED_TILES
        tile, codes = tiles[groups.tile.pairs], self.codes
        if not rows.is_cuda:  # Triton's interpreter runs one program after the other
            tile = tile._replace(columns=INTERPRETED_COLUMNS, units=8)
        width = num_columns // 2 if activation.is_gated else num_columns
        output = rows.new_empty(groups.num_pairs, width)
        grid = (groups.experts.numel(), triton.cdiv(num_columns, tile.columns))
        coded_product_kernel[grid](
            rows,
            codes.low,
            codes.low if codes.high is None else codes.high,
            codes.scales,
            codes.scales if codes.extra is None else codes.extra,
            codes.scales if codes.table is None else codes.table,
            codes.low if self.bias is None else self.bias,
            groups.experts,
            groups.experts if groups.pairs is None else groups.pairs,
            output,
            groups.num_pairs,
            top_k,
            *self._strides(activation.is_gated),
            activation.alpha,
            activation.limit,
            activation.offset,
            COLUMNS=num_columns,
            **constants(codes),
            BLOCK_M=tile.pairs,
            BLOCK_N=tile.columns,
            BLOCK_UNITS=tile.units,
            IS_SORTED=groups.pairs is not None,
            ACTIVATION=activation.kind,
            IS_GATED=activation.is_gated,
            IS_INTERLEAVED=self.rows is Rows.PAIRS,
            HAS_BIAS=self.bias is not None,
            UPCAST=rows.dtype is torch.bfloat16 and rows.device.type == "cpu",
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **launch_settings(rows.device),
        )
        return output

    def _strides(self, is_gated: bool) -> tuple[int, int, int]:
        """Rows from one expert to the next, from a gate to its counterpart, and to the next."""
        num_experts, num_columns, _ = self.shape
        half = num_columns // 2
        if not is_gated or self.rows is Rows.HALVES:
            return num_columns, half, 1
        if self.rows is Rows.PAIRS:
            return num_columns, 1, 2
        return half, num_experts * half, 1
