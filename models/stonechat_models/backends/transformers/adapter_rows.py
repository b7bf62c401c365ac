"""Which rows of a step belong to which LoRA adapter."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise

import torch
from torch import nn

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.hardware.transfers import to_device

Rows = slice | torch.Tensor
"""Rows behind each other, or int64[k] with their indices."""
ALL = slice(None)
MAX_JOINT_ROWS = 64
"""Most rows for which the products of several adapters are computed as one, other rows included."""


@dataclass(slots=True)
class RowGroups:
    """The rows that have adapters, of N sequences: sequence i has `counts[i]` rows behind those of
    the sequences before it, and the adapter `adapters[i]`, -1 for none."""

    adapters: Sequence[int] = ()
    counts: Sequence[int] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    groups: list[tuple[int, Rows]] = field(init=False)
    """Each adapter's index and its rows."""
    is_joint: bool = field(init=False)
    """Whether there are several adapters, and few enough rows to compute them as one product."""
    _owners: torch.Tensor | None = field(init=False, default=None)
    _strange: dict[tuple[int, ...], torch.Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.groups = _groups(self.adapters, self.counts, self.device)
        self.is_joint = len(self.groups) > 1 and sum(self.counts) <= MAX_JOINT_ROWS

    def strange(self, columns: tuple[int, ...]) -> torch.Tensor:
        """Return bool[rows, columns]: whether a column belongs to another adapter than the row.

        `columns`: the adapter of each column. Layers that have the same ones share the result.
        """
        found = self._strange.get(columns)
        if found is None:
            if self._owners is None:
                pairs = zip(self.adapters, self.counts, strict=True)
                owners = [adapter for adapter, count in pairs for _ in range(count)]
                self._owners = to_device(owners, self.device, torch.int64)
            wanted = to_device(list(columns), self.device, torch.int64)
            found = self._strange[columns] = self._owners[:, None] != wanted
        return found


class StepRows:
    """The rows of each adapter in the step that runs. The layers of a module share one object.

    Layers with adapters are in the module only while a step has adapters. Other steps run the
    module as it was.
    """

    def __init__(self) -> None:
        self.tokens = self.head = RowGroups()
        self._places: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
        self._is_on = False

    def add_layer(self, parent: nn.Module, name: str, layer: nn.Module) -> None:
        """Put `layer` in the place of the child `name` of `parent` while a step has adapters."""
        self._places.append((parent, name, parent.get_submodule(name), layer))

    def clear(self) -> None:
        """The next step has no adapter."""
        self.tokens = self.head = RowGroups()
        self._switch(is_on=False)

    def set(self, batch: ForwardBatch, *, head_reads_all: bool) -> None:
        """Take the rows of a step: `tokens` of its tokens, `head` of what the output head reads.

        `head_reads_all`: it gets all tokens, else only those that need logits.
        """
        if not batch.adapters:
            self.clear()
            return
        device = batch.token_ids.device
        starts = batch.query_start_list
        counts = [end - start for start, end in pairwise(starts)]
        self.tokens = self.head = RowGroups(batch.adapters, counts, device)
        self._switch(is_on=True)
        if not head_reads_all:
            self.head = RowGroups(batch.adapters, batch.num_rows_list, device)

    def set_all(self, adapter: int) -> None:
        """All rows of the next step, however many, have this adapter."""
        self.tokens = self.head = RowGroups([adapter], [1])
        self._switch(is_on=True)

    def _switch(self, *, is_on: bool) -> None:
        if is_on is not self._is_on:
            for parent, name, base, layer in self._places:
                parent._modules[name] = layer if is_on else base
            self._is_on = is_on


def _groups(
    adapters: Sequence[int], counts: Sequence[int], device: torch.device
) -> list[tuple[int, Rows]]:
    if len(set(adapters)) <= 1:
        return [(adapter, ALL) for adapter in adapters[:1] if adapter >= 0]
    starts = [0, *accumulate(counts)]
    runs: dict[int, list[tuple[int, int]]] = {}
    for adapter, run in groupby(range(len(adapters)), adapters.__getitem__):
        sequences = list(run)
        first, end = starts[sequences[0]], starts[sequences[-1] + 1]
        if adapter >= 0 and first < end:
            runs.setdefault(adapter, []).append((first, end))
    found: list[tuple[int, Rows]] = []
    for adapter, parts in runs.items():
        if len(parts) == 1:
            found.append((adapter, slice(*parts[0])))
        else:
            rows = [row for part in parts for row in range(*part)]
            found.append((adapter, to_device(rows, device, torch.int64)))
    return found
