"""Which rows of a step belong to which adapter."""

from collections.abc import Sequence
from itertools import accumulate, groupby

import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.hardware.transfers import to_device

Rows = slice | torch.Tensor
"""Rows behind each other, or int64[k] with their indices."""
ALL = slice(None)


class StepRows:
    """The rows of each adapter in the step that runs. The layers of a module share one object.

    Empty if no sequence of the step has an adapter: then nothing is added.
    """

    def __init__(self) -> None:
        self.tokens: list[tuple[int, Rows]] = []
        """Each adapter's index, and its rows among the step's tokens."""
        self.head: list[tuple[int, Rows]] = []
        """The same for what the output head reads."""

    def set(self, batch: ForwardBatch, *, head_reads_all: bool) -> None:
        """Take the rows of a step. `head_reads_all`: the head gets all tokens, else only those that
        need logits."""
        adapters = batch.adapters
        if not adapters:
            self.clear()
            return
        starts, device = batch.query_start_list, batch.token_ids.device
        self.tokens = groups(adapters, starts, device)
        self.head = self.tokens
        if not head_reads_all:
            self.head = groups(adapters, [0, *accumulate(batch.num_rows_list)], device)

    def clear(self) -> None:
        """The next step has no adapter."""
        self.tokens = self.head = []


def groups(
    adapters: Sequence[int], starts: Sequence[int], device: torch.device
) -> list[tuple[int, Rows]]:
    """Return each adapter with its rows. Sequence i has the rows `starts[i]:starts[i + 1]` and the
    adapter `adapters[i]`, -1 for none."""
    if len(set(adapters)) == 1:
        return [(adapters[0], ALL)] if adapters[0] >= 0 else []
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
