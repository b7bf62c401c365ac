"""Layers whose weights stay quantised as a file stores them: linear layers and embeddings.

Both have an attribute `weight` with the shape, dtype and device that the weight would have, because
models and checks ask for them. All its numbers are NaN and lie in one place of memory, so whatever
computes with it by mistake gives NaN.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from stonechat_models.backends.quantization.codes.codes import Codes, joined
from stonechat_models.backends.quantization.linear import QuantizedLinear
from stonechat_models.backends.quantization.scratch import Scratch


def stand_in(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of NaN that takes the memory of one number."""
    return torch.full((1, 1), torch.nan, dtype=dtype, device=device).expand(shape)


class Way(Protocol):
    """Multiplies several rows by codes in another way than `multiply_into`."""

    def __call__(
        self,
        output: torch.Tensor,
        x: torch.Tensor,
        codes: Codes,
        bias: torch.Tensor | None,
        *,
        compiles_only: bool = False,
    ) -> None:
        """Write x [rows, k] times the transposed weight, plus the bias [n], to output [rows, n].

        The columns of both are contiguous. `compiles_only`: kernels are compiled and not run.
        """


class CodedLinear(QuantizedLinear):
    """A linear layer with the rows of all `parts` in order.

    `bias` is a parameter or None, and becomes one of `dtype`. `order`: which columns of x the
    columns of the codes belong to, int64[k]; None: the same. `scratch` is shared by layers of one
    device and dtype.
    """

    def __init__(
        self,
        parts: Sequence[Codes],
        bias: nn.Parameter | None,
        scratch: Scratch,
        dtype: torch.dtype,
        order: torch.Tensor | None = None,
    ) -> None:
        sizes = [part.shape[0] for part in parts]
        shape = torch.Size((sum(sizes), parts[0].shape[1]))
        super().__init__(shape)
        self.parts = list(parts)
        self.scratch = scratch
        self.order = order
        self._ways: Mapping[int, Way] = {}
        self._way_parts = self.parts
        self.weight = stand_in(shape, dtype, parts[0].low.device)
        if bias is not None and bias.dtype != dtype:  # of a module that was made in float32
            bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        self.register_parameter("bias", bias)
        self.bias: nn.Parameter | None
        scratch.reserve(max(sizes) * shape[1])

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales. The bias is a parameter, and counted as such."""
        return sum(part.num_bytes for part in self.parts)

    def use_ways(self, ways: Mapping[int, Way], parts: list[Codes]) -> None:
        """Let these numbers of rows be multiplied in these ways, by `parts`: the same weights."""
        self._ways, self._way_parts = ways, parts

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        if self.order is not None:
            x = x[:, self.order]
        return self._multiply(x if x.stride(1) == 1 else x.contiguous())

    def compile_product(self, num_rows: int) -> None:
        """Compile the kernels of a product with so many rows of activations, without running it."""
        like = self.weight
        x = torch.empty(num_rows, self.in_features, dtype=like.dtype, device=like.device)
        self._multiply(x, compiles_only=True)

    def _multiply(self, x: torch.Tensor, *, compiles_only: bool = False) -> torch.Tensor:
        from stonechat_models.backends.quantization.codes.code_products import multiply_into

        output = torch.empty(len(x), self.out_features, dtype=x.dtype, device=x.device)
        if not len(x):  # the output layer of a step that ends no prompt
            return output
        way = self._ways.get(len(x))
        start = 0
        for part in self.parts if way is None else self._way_parts:
            end = start + part.shape[0]
            bias = None if self.bias is None else self.bias[start:end]
            rows = output[:, start:end]
            if way is None:
                multiply_into(rows, x, part, bias, self.scratch, compiles_only=compiles_only)
            else:
                way(rows, x, part, bias, compiles_only=compiles_only)
            start = end
        return output


def merged_coded(linears: Sequence[CodedLinear]) -> CodedLinear | None:
    """One layer with the outputs of all `linears` in order, or None if they cannot be merged.

    Neighbours of one format become one matrix, for one kernel.
    """
    first = linears[0]
    if any(linear.order is not None for linear in linears):
        return None
    for linear in linears:
        if linear.in_features != first.in_features or linear.scratch is not first.scratch:
            return None
        if (linear.bias is None) != (first.bias is None):
            return None
    groups: list[list[Codes]] = []
    for part in (part for linear in linears for part in linear.parts):
        if groups and groups[-1][0].can_join(part):
            groups[-1].append(part)
        else:
            groups.append([part])
    parts = [joined(group) if len(group) > 1 else group[0] for group in groups]
    bias = None
    biases = [linear.bias for linear in linears if linear.bias is not None]
    if biases:
        bias = nn.Parameter(torch.cat([b.detach() for b in biases]), requires_grad=False)
    return CodedLinear(parts, bias, first.scratch, first.weight.dtype)


class CodedEmbedding(nn.Module):
    """Looks up rows of quantised weights. `scale`: a factor of all of them."""

    def __init__(self, codes: Codes, dtype: torch.dtype, scale: float | None = None) -> None:
        super().__init__()
        self.codes = codes
        self.num_embeddings, self.embedding_dim = codes.shape
        self.weight = stand_in(codes.shape, dtype, codes.low.device)
        self.scale = None if scale is None else float(torch.tensor(scale).to(dtype))

    @property
    def num_bytes(self) -> int:
        return self.codes.num_bytes

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Maps ids int64[...] to [..., k]."""
        from stonechat_models.backends.quantization.codes.code_products import dequantise_into

        flat = ids.reshape(-1).contiguous()
        rows = torch.empty(
            len(flat), self.embedding_dim, dtype=self.weight.dtype, device=flat.device
        )
        dequantise_into(rows, self.codes, index=flat)
        if self.scale is not None:
            rows *= self.scale
        return rows.view(*ids.shape, self.embedding_dim)
