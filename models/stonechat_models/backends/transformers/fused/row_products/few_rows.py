"""Launches the product for a few rows, with its norm, gate or residual in the same kernel."""

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import triton
from torch import nn

from stonechat_models.backends.transformers.fused.row_products.few_rows_kernel import (
    few_rows_kernel,
    few_rows_qkv_kernel,
)
from stonechat_models.hardware.dependent_launch import launch_settings

ROW_COUNTS = (1, 2, 4)
"""Numbers of rows that the product is compiled for: the smallest decode steps of CUDA graphs."""
COLUMNS_PER_WARP = 256
"""Eight of each thread: 16 bytes in half precision, the widest load."""


@dataclass(frozen=True, slots=True)
class FewRowsTile:
    """How one program reads the weights: `rows` of the matrix, by `num_warps` warps."""

    rows: int = 8
    num_warps: int = 4
    num_lines: int = 0
    """Lines of 128 bytes of each row of the weight that are fetched before the inputs are there."""


class RowNorm(Protocol):
    """An RMS norm over rows; `offset` is added to its weight."""

    weight: nn.Parameter
    epsilon: float
    offset: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


def few_rows_product(
    x: torch.Tensor,
    linear: nn.Module,
    tile: FewRowsTile,
    *,
    norm: RowNorm | None = None,
    residual: torch.Tensor | None = None,
    is_gated: bool = False,
    uses_gelu: bool = False,
    compiles_only: bool = False,
) -> torch.Tensor:
    """linear(x) for rows [M, k], as [M, n]; n is half of the layer's outputs if `is_gated`.

    With `norm` it is linear(norm(x)), where the normed rows are not rounded. With `is_gated` the
    result is act(first half) * second half; act is SiLU or GELU's tanh approximation. `residual`
    [M, n] is added in place and returned. `compiles_only`: the kernel is compiled and not run.
    """
    weight, bias = linear.weight, linear.bias
    assert isinstance(weight, torch.Tensor)
    num_outputs = weight.shape[0] // (2 if is_gated else 1)
    if x.stride(1) != 1:
        x = x.contiguous()
    output = x.new_empty(len(x), num_outputs) if residual is None else residual
    assert output.is_contiguous()
    assert weight.is_contiguous()
    block = max(1, tile.rows // 2) if is_gated else tile.rows
    grid = (triton.cdiv(num_outputs, block),)
    launch = partial(few_rows_kernel.warmup, grid=grid) if compiles_only else few_rows_kernel[grid]
    launch(
        x,
        weight,
        weight if bias is None else bias,
        weight if norm is None else norm.weight,
        output,
        output,
        weight.shape[1],
        num_outputs,
        x.stride(0),
        0.0 if norm is None else norm.epsilon,
        0.0 if norm is None else norm.offset,
        ROWS=len(x),
        BLOCK_N=block,
        BLOCK_K=COLUMNS_PER_WARP * tile.num_warps,
        HAS_NORM=norm is not None,
        HAS_BIAS=bias is not None,
        LINES=tile.num_lines,
        ADDS=residual is not None,
        GATED=is_gated,
        GELU=uses_gelu,
        num_warps=tile.num_warps,
        **launch_settings(x.device),
    )
    return output


def few_rows_qkv(
    x: torch.Tensor,
    linear: nn.Module,
    tile: FewRowsTile,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    norm: RowNorm | None,
    compiles_only: bool = False,
) -> torch.Tensor:
    """Project norm(x [M, k]) to heads, rotate whole heads, and store keys and values.

    Arguments and result are those of `rope_and_store`, but `slots` has M numbers, `keys` and
    `values` have the dtype of `x`, and all of a head's elements are rotated.
    """
    weight, bias = linear.weight, linear.bias
    assert isinstance(weight, torch.Tensor)
    num_kv_heads, size = keys.shape[1:]
    num_heads = weight.shape[0] // size - 2 * num_kv_heads
    cosines, sines = (angles.squeeze(0) for angles in position_embeddings)
    if x.stride(1) != 1:
        x = x.contiguous()
    query = x.new_empty(len(x), num_heads, size)
    assert len(slots) == len(x)
    assert all(tensor.is_contiguous() for tensor in (weight, keys, values))
    assert cosines.stride(1) == sines.stride(1) == 1
    block = max(1, tile.rows // 2)
    grid = (triton.cdiv(weight.shape[0] // 2, block),)
    kernel = few_rows_qkv_kernel
    launch = partial(kernel.warmup, grid=grid) if compiles_only else kernel[grid]
    launch(
        x,
        weight,
        weight if bias is None else bias,
        weight if norm is None else norm.weight,
        cosines,
        sines,
        slots,
        query,
        keys,
        values,
        weight.shape[1],
        x.stride(0),
        cosines.stride(0),
        sines.stride(0),
        0.0 if norm is None else norm.epsilon,
        0.0 if norm is None else norm.offset,
        ROWS=len(x),
        HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        SIZE=size,
        ANGLES=cosines.shape[1],
        BLOCK_N=block,
        BLOCK_K=COLUMNS_PER_WARP * tile.num_warps,
        HAS_NORM=norm is not None,
        HAS_BIAS=bias is not None,
        LINES=tile.num_lines,
        num_warps=tile.num_warps,
        **launch_settings(x.device),
    )
    return query
