"""A linear layer with LoRA adapters beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stonechat_models.backends.transformers.adapter_rows import RowGroups, Rows, StepRows

Factors = tuple[torch.Tensor, torch.Tensor]
"""What an adapter adds to outputs is x A^T B: A [r, in], and B [r, out] with the scale in it."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The factors of several adapters for the same outputs of a layer, those from `start` on.

    A column is one of the S numbers between the two products, S being the sum of the ranks.
    """

    a: torch.Tensor
    """[S, in]"""
    b: torch.Tensor
    """[S, out]"""
    start: int
    columns: tuple[int, ...]
    """The adapter of each column."""
    places: Mapping[int, slice]
    """The columns of each adapter."""

    @classmethod
    def of(cls, factors: Mapping[int, Factors], start: int) -> "Stack":
        """`factors`: those of each adapter, by its index."""
        ranks = [a.shape[0] for a, _ in factors.values()]
        ends = list(accumulate(ranks))
        spans = [slice(end - rank, end) for rank, end in zip(ranks, ends, strict=True)]
        return cls(
            a=torch.cat([a for a, _ in factors.values()]),
            b=torch.cat([b for _, b in factors.values()]),
            start=start,
            columns=tuple(i for i, rank in zip(factors, ranks, strict=True) for _ in range(rank)),
            places=dict(zip(factors, spans, strict=True)),
        )

    def add_to(self, y: torch.Tensor, x: torch.Tensor, rows: RowGroups) -> None:
        """Add each adapter's part to its rows of y [T, outputs] in place; x is [T, in].

        Where most adapters are in the step, and its rows are few, two products compute them all.
        """
        outputs = y[:, self.start : self.start + self.b.shape[1]]
        if rows.is_joint and 2 * len(rows.groups) >= len(self.places):
            between = F.linear(x, self.a).masked_fill_(rows.strange(self.columns), 0.0)
            outputs.addmm_(between, self.b)
            return
        for adapter, own in rows.groups:
            if adapter in self.places:
                self._add_one(outputs, x, self.places[adapter], own)

    def _add_one(self, outputs: torch.Tensor, x: torch.Tensor, place: slice, rows: Rows) -> None:
        a, b = self.a[place], self.b[place]
        if isinstance(rows, slice):
            outputs[rows].addmm_(F.linear(x[rows], a), b)
        else:
            outputs.index_add_(0, rows, F.linear(x[rows], a) @ b)


class LoraLinear(nn.Module):
    """Computes base(x), and adds what the adapters of the step add to their rows.

    `base` may be of any kind, with quantised weights too, or the merged one of several layers.
    `is_head`: it is the output head, which may get only the rows that need logits.
    """

    def __init__(
        self, base: nn.Module, rows: StepRows, stacks: Sequence[Stack], *, is_head: bool = False
    ) -> None:
        super().__init__()
        self.base = base
        self.rows = rows
        self.stacks = stacks
        self.is_head = is_head

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Maps [..., in] to [..., outputs]."""
        y: torch.Tensor = self.base(x, *args, **kwargs)
        rows = self.rows.head if self.is_head else self.rows.tokens
        if not rows.groups:
            return y
        x_rows, y_rows = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        for stack in self.stacks:
            stack.add_to(y_rows, x_rows, rows)
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
