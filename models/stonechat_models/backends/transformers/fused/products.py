"""A model's matrix products with what surrounds them, by the kernel chosen for their rows.

For up to 64 rows it may be a kernel of our own, if `choose_products` found it faster; else it is
PyTorch's product, and the operations around it are kernels of their own.
"""

import torch
import triton
from torch import nn

from stonechat_models.backends.transformers.fused.kernels import gated_kernel
from stonechat_models.backends.transformers.fused.linears import way_of
from stonechat_models.backends.transformers.fused.row_products.few_rows import (
    FewRowsTile,
    RowNorm,
    few_rows_product,
)
from stonechat_models.backends.transformers.fused.row_products.some_rows import (
    SomeRows,
    some_rows_product,
)
from stonechat_models.hardware.dependent_launch import launch_settings

GATED_BLOCK = 1024


def normed_product(x: torch.Tensor, norm: RowNorm | None, linear: nn.Module) -> torch.Tensor:
    """linear(norm(x)) for rows [M, k]; linear(x) without a norm."""
    way = way_of(linear, len(x))
    if isinstance(way, FewRowsTile) and norm is not None:
        return few_rows_product(x, linear, way, norm=norm)
    normed = x if norm is None else norm(x)
    if isinstance(way, SomeRows):
        return some_rows_product(normed, linear, way)
    product: torch.Tensor = linear(normed)
    return product


def gated_product(
    x: torch.Tensor, norm: RowNorm | None, gate_up: nn.Module, *, uses_gelu: bool
) -> torch.Tensor:
    """act(gate) * up, where `gate_up` computes both from norm(x), for rows [M, k]."""
    way = way_of(gate_up, len(x))
    if isinstance(way, FewRowsTile):
        return few_rows_product(x, gate_up, way, norm=norm, is_gated=True, uses_gelu=uses_gelu)
    normed = x if norm is None else norm(x)
    if isinstance(way, SomeRows):
        return some_rows_product(normed, gate_up, way, is_gated=True, uses_gelu=uses_gelu)
    both = gate_up(normed).contiguous()
    size = both.shape[1] // 2
    output = torch.empty((len(x), size), dtype=x.dtype, device=x.device)
    gated_kernel[(len(x), triton.cdiv(size, GATED_BLOCK))](
        both,
        output,
        SIZE=size,
        BLOCK=GATED_BLOCK,
        GELU=uses_gelu,
        **launch_settings(x.device),
    )
    return output


def add_product(residual: torch.Tensor, linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`residual` [M, n] plus linear(x [M, k]), in place and in one product.

    `linear` must be one for which `adds_in_product` is true.
    """
    way = way_of(linear, len(x))
    if isinstance(way, FewRowsTile):
        return few_rows_product(x, linear, way, residual=residual)
    if isinstance(way, SomeRows):
        return some_rows_product(x, linear, way, residual=residual)
    weight = linear.weight
    assert isinstance(weight, torch.Tensor)
    return residual.addmm_(x, weight.t())
