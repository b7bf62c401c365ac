"""How packed weights become numbers: one class per layout, without further packages.

A layout works on a matrix [n, k], or on a tensor of more dimensions whose matrices lie one behind
the other. `parts` holds its stored tensors by their role, `rows` the rows that are wanted. All are
torch tensors on the CPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch


class MisfitError(ValueError):
    """The parts of a packed weight do not fit together."""


Parts = Mapping[str, torch.Tensor]
GROUP = 32
"""The compiled kernels have one scale for so many weights."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Integers [n, k] and what they stand for: (values - zeros) * scales."""

    values: torch.Tensor
    scales: torch.Tensor
    """float32[n, groups]"""
    zeros: torch.Tensor
    """float32[n, groups]"""
    group_of: torch.Tensor
    """int64[k]: the group of each column."""

    def floats(self) -> torch.Tensor:
        """Return the weights, float32[n, k]."""
        values = self.values.float().sub_(self.zeros[:, self.group_of])
        return values.mul_(self.scales[:, self.group_of])

    @property
    def is_regular(self) -> bool:
        """Whether each run of `GROUP` columns lies in one group."""
        if self.group_of.numel() % GROUP:
            return False
        runs = self.group_of.view(-1, GROUP)
        return bool((runs == runs[:, :1]).all())


class Layout(ABC):
    """Reads rows of packed weights."""

    def codes(self, parts: Parts, rows: torch.Tensor) -> Codes | None:
        """Return the rows as integers, or None if the format has none."""
        return None

    def stored_shape(self, parts: Parts) -> tuple[int, ...] | None:
        """Return the weight's shape as the data say it, or None if they do not."""
        return None

    @abstractmethod
    def floats(self, parts: Parts, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows as float32[n, k]."""


class IntegerLayout(Layout):
    """A layout of integers with scales."""

    @abstractmethod
    def codes(self, parts: Parts, rows: torch.Tensor) -> Codes: ...

    def floats(self, parts: Parts, rows: torch.Tensor) -> torch.Tensor:
        return self.codes(parts, rows).floats()


def unpack_bits(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Unpack int32[..., p], a stream of numbers of `bits` bits, lowest first, to [..., count]."""
    mask = (1 << bits) - 1
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        values = (words.unsqueeze(-1) >> shifts).bitwise_and_(mask).to(torch.uint8)
        return values.flatten(-2)[..., :count]
    first_bit = torch.arange(count) * bits
    word, offset = first_bit // 32, first_bit % 32
    unsigned = words.long() & 0xFFFFFFFF
    low = unsigned[..., word] >> offset
    high = unsigned[..., (word + 1).clamp(max=words.shape[-1] - 1)] << (32 - offset)
    return ((low | high) & mask).to(torch.uint8)


def scale_values(scale: torch.Tensor) -> torch.Tensor:
    """Return scales as float32. Bytes, and the type e8m0, are exponents of two."""
    if scale.dtype in (torch.uint8, torch.float8_e8m0fnu):
        return torch.exp2(scale.view(torch.uint8).float() - 127)
    return scale.float()


def spread(
    scale: torch.Tensor, shape: tuple[int, ...], block: tuple[int, int], rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales [n, groups] of `rows`, and the group of each column.

    A scale belongs to a whole matrix, a row, a group of columns, or a block. `block` is the size of
    a block, or of a group in its second number. Raises `MisfitError` if they do not fit.
    """
    (count, num_rows, num_columns), per_row, per_column = scale_grid(shape, scale.shape, block)
    n, k = shape[-2:]
    if scale.numel() == 1:
        scale = scale.reshape(1, 1, 1).expand(count, num_rows, num_columns)
    scale = scale.reshape(count, num_rows, num_columns)
    matrix, row = rows // n, rows % n
    return scale[matrix, row // per_row], torch.arange(k) // per_column


def scale_grid(
    shape: tuple[int, ...], scale_shape: tuple[int, ...], block: tuple[int, int]
) -> tuple[tuple[int, int, int], int, int]:
    """Return the scales' shape [matrices, rows, columns], and the rows and columns of a block.

    See `spread`.
    """
    if len(shape) < 2:
        raise MisfitError("weights that are not a matrix have scales")
    n, k = shape[-2:]
    if len(scale_shape) == len(shape) + 2 and scale_shape[-3] == scale_shape[-1] == 1:
        scale_shape = (*scale_shape[:-3], scale_shape[-2])  # ModelOpt's [rows, 1, columns, 1]
    count, num_scales = prod(shape[:-2]), prod(scale_shape)
    if len(scale_shape) == len(shape) and scale_shape[:-2] == shape[:-2]:
        num_rows, num_columns = scale_shape[-2:]
    elif num_scales == 1 or scale_shape in (shape[:-2], (*shape[:-2], 1), (count,)):
        num_rows = num_columns = 1
    elif scale_shape in (shape[:-1], (count * n,)):
        num_rows, num_columns = n, 1
    else:
        raise MisfitError("scales do not fit their weights")
    per_row, per_column = block_size(n, num_rows, block[0]), block_size(k, num_columns, block[1])
    return (count, num_rows, num_columns), per_row, per_column


def block_size(size: int, num_scales: int, block: int) -> int:
    """Return how many of `size` weights share a scale. `block` decides where the last are fewer.

    Raises `MisfitError` if the numbers do not fit.
    """
    if num_scales == 1:
        return size
    if num_scales == size:
        return 1
    if block > 0 and -(-size // block) == num_scales:
        return block
    if num_scales and size % num_scales == 0:
        return size // num_scales
    raise MisfitError("scales do not fit their weights")


def group_index(parts: Parts, k: int, num_groups: int, group_size: int) -> torch.Tensor:
    """Return the group of each of k columns: stored with the weights, or runs of `group_size`."""
    if "g_idx" not in parts:
        return torch.arange(k) // block_size(k, num_groups, group_size)
    index = parts["g_idx"].long()
    if index.numel() != k or not 0 <= int(index.min()) <= int(index.max()) < num_groups:
        raise MisfitError("the order of its weights does not fit their scales")
    return index
