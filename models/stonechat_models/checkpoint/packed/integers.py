"""Packed formats of integers: GPTQ, AWQ, those of compressed-tensors, and int8."""

from dataclasses import dataclass

import torch

from stonechat_models.checkpoint.packed.layouts import (
    Codes,
    IntegerLayout,
    MisfitError,
    Parts,
    group_index,
    spread,
    unpack_bits,
)


@dataclass(frozen=True, slots=True)
class Gptq(IntegerLayout):
    """int32 words along the inputs; scales [groups, n]. Version 1 stores zeros less one."""

    bits: int
    group_size: int
    zero_offset: int
    k: int

    def zeros(self, packed: torch.Tensor, n: int) -> torch.Tensor:
        """Unpack the zeros: float32[groups, n]."""
        zeros = unpack_bits(packed, self.bits, n).int() + self.zero_offset
        return zeros.bitwise_and_((1 << self.bits) - 1).float()

    def codes(self, parts: Parts, rows: torch.Tensor) -> Codes:
        values = unpack_bits(parts["qweight"][:, rows].T.contiguous(), self.bits, self.k)
        num_groups, n = parts["scales"].shape
        zeros = self.zeros(parts["qzeros"], n)[:, rows].T
        group_of = group_index(parts, self.k, num_groups, self.group_size)
        return Codes(values, parts["scales"][:, rows].T.float(), zeros, group_of)


AWQ_POSITIONS = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where an int32 word has each of 8 consecutive outputs."""


@dataclass(frozen=True, slots=True)
class Awq(IntegerLayout):
    """int32 words along the outputs; scales [groups, n]."""

    group_size: int

    def codes(self, parts: Parts, rows: torch.Tensor) -> Codes:
        num_groups, k = parts["scales"].shape[0], parts["qweight"].shape[0]
        return Codes(
            self._columns(parts["qweight"], rows),
            parts["scales"][:, rows].T.float(),
            self._columns(parts["qzeros"], rows).float(),
            group_index({}, k, num_groups, self.group_size),
        )

    @staticmethod
    def _columns(words: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        columns, place = torch.unique(rows // 8, return_inverse=True)
        packed = words[:, columns].view(torch.uint8)
        values = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1).T.contiguous()
        return values[8 * place + torch.tensor(AWQ_POSITIONS)[rows % 8]]


def check_columns(shape: tuple[int, ...], packed: tuple[int, ...], bits: int) -> None:
    """Raise `MisfitError` unless a matrix of this shape is packed in int32[n, words]."""
    if len(shape) != 2 or (shape[0], -(-shape[1] * bits // 32)) != tuple(packed):
        raise MisfitError("its shape does not fit its packed weights")


@dataclass(frozen=True, slots=True)
class PackedIntegers(IntegerLayout):
    """compressed-tensors: int32 words along the inputs, offset by half of the range."""

    bits: int
    group_size: int

    def codes(self, parts: Parts, rows: torch.Tensor) -> Codes:
        words, scale = parts["weight_packed"], parts["weight_scale"]
        shape = self.stored_shape(parts) or (words.shape[0], words.shape[1] * 32 // self.bits)
        k = shape[1]
        values = unpack_bits(words[rows], self.bits, k)
        scales, group_of = spread(scale, shape, (0, self.group_size), rows)
        if "weight_g_idx" in parts:
            order = {"g_idx": parts["weight_g_idx"]}
            group_of = group_index(order, k, scales.shape[1], self.group_size)
        zeros = torch.full_like(scales, 1 << (self.bits - 1), dtype=torch.float32)
        if "weight_zero_point" in parts:
            zeros = self._zeros(parts["weight_zero_point"], shape, rows)
        return Codes(values, scales.float(), zeros, group_of)

    def stored_shape(self, parts: Parts) -> tuple[int, ...] | None:
        if "weight_shape" not in parts:
            return None
        shape = tuple(int(size) for size in parts["weight_shape"].flatten()[:3].tolist())
        check_columns(shape, parts["weight_packed"].shape, self.bits)
        return shape

    def _zeros(
        self, zeros: torch.Tensor, shape: tuple[int, ...], rows: torch.Tensor
    ) -> torch.Tensor:
        if zeros.dtype is torch.int32:  # packed along the outputs
            zeros = unpack_bits(zeros.T.contiguous(), self.bits, shape[0]).T
        else:
            zeros = zeros.int() + (1 << (self.bits - 1))
        return spread(zeros, shape, (0, self.group_size), rows)[0].float()


@dataclass(frozen=True, slots=True)
class Int8(IntegerLayout):
    """int8 with scales, and zeros if it is not symmetric. bitsandbytes' scales are times 127."""

    shape: tuple[int, ...]
    block: tuple[int, int]
    scale_factor: float = 1.0

    def codes(self, parts: Parts, rows: torch.Tensor) -> Codes:
        values = parts["weight"].reshape(-1, self.shape[-1])[rows]
        scales, group_of = spread(parts["scale"], self.shape, self.block, rows)
        zeros = torch.zeros_like(scales, dtype=torch.float32)
        if "zero_point" in parts:
            zeros = spread(parts["zero_point"], self.shape, self.block, rows)[0].float()
        return Codes(values, scales.float() * self.scale_factor, zeros, group_of)
