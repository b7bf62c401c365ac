"""The base class of linear layers with quantised weights, which replace `nn.Linear`."""

import torch
from torch import nn


class QuantizedLinear(nn.Module):
    """Computes y = x W^T + b for x [..., in_features], in the dtype of x.

    A layer that is built from a weight on the meta device has no data, but the right `num_bytes`.
    """

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.out_features, self.in_features = shape

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights, scales and bias."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, torch.Tensor))

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply x[rows, in_features]; return [rows, out_features]."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.rows(x.reshape(-1, self.in_features))
        return output.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
