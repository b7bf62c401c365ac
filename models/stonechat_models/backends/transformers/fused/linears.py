"""Merges linear layers into one, says which are ordinary, and how those are multiplied."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from stonechat_models.backends.quantization.codes.coded_linear import CodedLinear, merged_coded

Linear = nn.Linear | CodedLinear
"""A layer whose outputs can be merged with those of others."""
WAYS = "stonechat_ways"


def merged_linear(linears: Sequence[Linear]) -> Linear | None:
    """One layer with the outputs of all `linears` in order, or None if they cannot be merged."""
    coded = [linear for linear in linears if isinstance(linear, CodedLinear)]
    plain = [linear for linear in linears if isinstance(linear, nn.Linear)]
    if len(coded) == len(linears):
        return merged_coded(coded)
    return _merged_plain(plain) if len(plain) == len(linears) else None


def _merged_plain(linears: Sequence[nn.Linear]) -> nn.Linear | None:
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
    """Whether a residual can be added in this layer's matrix product."""
    return is_plain(linear) and linear.bias is None


def use_ways(linear: nn.Module, ways: Mapping[int, object]) -> None:
    """Let `linear` be multiplied in these ways, by the number of rows, and else by PyTorch."""
    setattr(linear, WAYS, dict(ways))


def way_of(linear: nn.Module, num_rows: int) -> object | None:
    """How to multiply this number of rows by `linear`; None if PyTorch's product is used."""
    ways: dict[int, object] | None = linear.__dict__.get(WAYS)
    return ways.get(num_rows) if ways and is_plain(linear) else None
