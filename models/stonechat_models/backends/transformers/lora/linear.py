"""A linear layer with LoRA adapters beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stonechat_models.backends.transformers.adapter_rows import Rows, StepRows


@dataclass(frozen=True, slots=True)
class Part:
    """What an adapter adds to some of a layer's outputs, those from `start` on: x A^T B."""

    a: torch.Tensor
    """[r, in]"""
    b: torch.Tensor
    """[r, out]: B transposed, with the scale in it."""
    start: int = 0

    def add_to(self, y: torch.Tensor, x: torch.Tensor, rows: Rows) -> None:
        """Add it to these rows of y [T, outputs] in place; x is [T, in]."""
        columns = slice(self.start, self.start + self.b.shape[1])
        if isinstance(rows, slice):
            y[rows, columns].addmm_(F.linear(x[rows], self.a), self.b)
        else:
            product = F.linear(x[rows], self.a) @ self.b
            y[:, columns].index_add_(0, rows, product)


class LoraLinear(nn.Module):
    """Computes base(x), and adds x A^T B to the rows of each adapter that the step has.

    `base` may be of any kind, with quantised weights too, or the merged one of several layers. A
    step without adapters only calls it. `parts`: those of each adapter, by its index. `is_head`:
    it is the output head, which may get only the rows that need logits.
    """

    def __init__(
        self,
        base: nn.Module,
        rows: StepRows,
        parts: Mapping[int, Sequence[Part]],
        *,
        is_head: bool = False,
    ) -> None:
        super().__init__()
        self.base = base
        self.rows = rows
        self.parts = parts
        self.is_head = is_head

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Maps [..., in] to [..., outputs]."""
        y: torch.Tensor = self.base(x, *args, **kwargs)
        groups = self.rows.head if self.is_head else self.rows.tokens
        if not groups:
            return y
        x_rows, y_rows = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        for adapter, rows in groups:
            for part in self.parts.get(adapter, ()):
                part.add_to(y_rows, x_rows, rows)
        return y_rows.view(y.shape)

    @property
    def weight(self) -> Any:
        """The base's own, whose shape, dtype and device models and checks ask for."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        return self.base.bias

    @property
    def in_features(self) -> int:
        return int(self.base.in_features)  # type: ignore[arg-type]

    @property
    def out_features(self) -> int:
        return int(self.base.out_features)  # type: ignore[arg-type]
