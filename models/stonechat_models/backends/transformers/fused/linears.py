"""Merges linear layers into one, and adds a residual in the matrix product itself."""

from collections.abc import Sequence

import torch
from torch import nn


def merged_linear(linears: Sequence[nn.Linear]) -> nn.Linear | None:
    """One layer with the outputs of all `linears` in order, or None if they cannot be merged."""
    first = linears[0]
    for linear in linears:
        if not is_plain(linear) or linear.weight.shape[1] != first.weight.shape[1]:
            return None
        if linear.weight.dtype != first.weight.dtype or linear.weight.device != first.weight.device:
            return None
        if (linear.bias is None) != (first.bias is None):
            return None
    weight = torch.cat([linear.weight for linear in linears])
    merged = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    merged.weight = nn.Parameter(weight, requires_grad=False)
    if first.bias is not None:
        bias = torch.cat([linear.bias for linear in linears])
        merged.bias = nn.Parameter(bias, requires_grad=False)
    return merged


def is_plain(linear: nn.Module) -> bool:
    """Whether this is PyTorch's own `nn.Linear` with an ordinary weight, not on the meta device."""
    if type(linear) is not nn.Linear or type(linear.weight) is not nn.Parameter:
        return False
    return not linear.weight.is_meta


def adds_in_product(linear: nn.Module) -> bool:
    """Whether `add_product` can be used with this layer."""
    return is_plain(linear) and linear.bias is None


def add_product(residual: torch.Tensor, linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`residual` [rows, n] plus linear(x [rows, k]), in place and in one product."""
    weight = linear.weight
    assert isinstance(weight, torch.Tensor)
    return residual.addmm_(x, weight.t())
