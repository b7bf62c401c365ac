"""Where a model computes: on a device through PyTorch, or on the host, which needs only numpy."""

from collections import abc
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.base import Array, ForwardBatch, HostBatch
from stonechat_models.engine.batch import build_batch, build_host_batch
from stonechat_models.engine.sequence import Scheduled

if TYPE_CHECKING:
    import torch


class Placement(Protocol):
    """The few operations of a step on arrays of the model's kind."""

    def batch(
        self, items: abc.Sequence[Scheduled], block_size: int, sampled_ids: Array | None
    ) -> ForwardBatch | HostBatch:
        """Pack the tokens of all items; see `build_batch`."""

    def select(self, values: Array, rows: list[int]) -> Array:
        """Return some rows of an array [R, n]."""

    def read(self, values: Array, rows: list[int]) -> npt.NDArray[np.float32]:
        """Return some rows of an array [R, n] on the host, as float32."""

    def computing(self) -> AbstractContextManager[object]:
        """The context of a step."""


class OnHost:
    """The host, with arrays of numpy."""

    def batch(
        self, items: abc.Sequence[Scheduled], block_size: int, sampled_ids: Array | None
    ) -> HostBatch:
        return build_host_batch(items, block_size, sampled_ids)

    def select(self, values: Array, rows: list[int]) -> Array:
        return values[rows]

    def read(self, values: Array, rows: list[int]) -> npt.NDArray[np.float32]:
        return np.asarray(values[rows], dtype=np.float32)

    def computing(self) -> AbstractContextManager[object]:
        return nullcontext()


class OnDevice:
    """A device of PyTorch, the CPU among them."""

    def __init__(self, device: "torch.device") -> None:
        self.device = device

    def batch(
        self, items: abc.Sequence[Scheduled], block_size: int, sampled_ids: Array | None
    ) -> ForwardBatch:
        sampled = None if sampled_ids is None else sampled_ids.to(self.device)
        return build_batch(items, block_size, self.device, sampled)

    def select(self, values: Array, rows: list[int]) -> Array:
        import torch

        from stonechat_models.hardware.transfers import to_device

        return values[to_device(rows, values.device, torch.int64)]

    def read(self, values: Array, rows: list[int]) -> npt.NDArray[np.float32]:
        return np.asarray(self.select(values, rows).float().cpu().numpy())

    def computing(self) -> AbstractContextManager[object]:
        import torch

        return torch.inference_mode()


def place_of(device: "torch.device | None") -> Placement:
    """Return the placement of a device; None is the host without PyTorch."""
    return OnHost() if device is None else OnDevice(device)
