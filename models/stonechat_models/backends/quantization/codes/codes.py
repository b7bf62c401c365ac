"""Quantised weights as planes of codes and scales, as the kernels of `code_kernels.py` read them.

A code has 4 to 8 bits. Its low 4 bits lie in the plane `low`, the others in the plane `high`. A
unit is 32 consecutive weights of a row: 4 words in each plane. Nibble i of word j belongs to the
weight 4 i + j of the unit, and so do the bits i * high_bits of its word in `high`. So a lane of a
kernel reads a unit in 16 bytes, and each word, or each half of it, belongs to one scale.
"""

from dataclasses import dataclass, field

import torch

UNIT = 32
WORDS = 4
"""Words of a unit."""
PLAIN, ZEROS, PAIRS, SIGNED, SMALL = range(5)
"""How scales are stored; see `Codes`."""
FLOAT8_NAN = 127
"""The bits of a float8 (e4m3) that is no number, without its sign."""
HIGH_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
PRODUCT_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.02}
"""The largest error of a product, or of experts, in norms of the exact output."""


@dataclass(frozen=True, slots=True)
class CodeFormat:
    """What a code stands for: scale * (code - offset), scale * table[code], or scale * float8."""

    name: str
    scaling: int
    high_bits: int = 0
    """0, 1, 2 or 4."""
    offset: int = 0
    table: tuple[int, ...] = ()
    """Values of all 16 codes, if they are not evenly spaced."""
    is_float8: bool = False
    """Codes are the bits of float8 numbers (e4m3), of which none is NaN."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A matrix [n, k] in a format; k is a multiple of 32. All planes are contiguous, on one device.

    PLAIN: `scales` are numbers, [n, k / group]. uint8 scales are exponents of two, offset by 128.
    ZEROS: each group also has an offset of its own in `extra`, uint8[n, k / group]; or, if `extra`
    has floats, what is subtracted from the scaled codes.
    PAIRS: `scales` are pairs of bytes, int16[n, k / 32], for the scale and what is subtracted. They
    are factors of the two half-precision numbers in `extra`, int32[n, k / 256].
    SIGNED: `scales` are int8[n, k / 16], factors of `extra`, float16[n, k / 256].
    SMALL: `scales` are the bits of float8 numbers, uint8[n, k / group], factors of `extra`,
    float32[n, 1].
    """

    format: CodeFormat
    low: torch.Tensor
    """int32[n, k / 8]"""
    high: torch.Tensor | None
    """[n, k / 8] of `HIGH_DTYPES`; None if codes have 4 bits."""
    scales: torch.Tensor
    extra: torch.Tensor | None
    group: int = UNIT
    table: torch.Tensor | None = field(default=None)
    """float32[16], if the format has one."""

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.low.shape[0], self.low.shape[1] * 8))

    @property
    def planes(self) -> list[torch.Tensor]:
        """All tensors that grow with the matrix."""
        planes = (self.low, self.high, self.scales, self.extra)
        return [plane for plane in planes if plane is not None]

    @property
    def num_bytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes)

    def can_join(self, other: "Codes") -> bool:
        """Whether the rows of both can lie in one matrix."""
        return (
            self.format == other.format
            and self.group == other.group
            and self.shape[1] == other.shape[1]
            and self.scales.dtype == other.scales.dtype
            and self.low.device == other.low.device
        )


def joined(parts: list[Codes]) -> Codes:
    """One matrix with the rows of all `parts` in order; they can be joined."""
    first = parts[0]

    def plane(name: str) -> torch.Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        return None if tensors[0] is None else torch.cat(tensors)

    low, scales = plane("low"), plane("scales")
    assert low is not None
    assert scales is not None
    return Codes(first.format, low, plane("high"), scales, plane("extra"), first.group, first.table)


def pack_codes(codes: torch.Tensor, high_bits: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pack uint8[n, k] into the planes `low` and `high`."""
    low = _packed(codes & 15, 4)
    return low, _packed(codes >> 4, high_bits) if high_bits else None


def _packed(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack numbers of `bits` bits, uint8[n, k], into words [n, k / 8] of 8 numbers."""
    per_byte = 8 // bits
    units = values.view(len(values), -1, bits, per_byte, WORDS)
    packed = units[:, :, :, 0].clone()
    for i in range(1, per_byte):
        packed |= units[:, :, :, i] << (bits * i)
    words = packed.transpose(2, 3).contiguous().view(HIGH_DTYPES[bits])
    return words.view(len(values), -1)


def float_table(format: CodeFormat, device: torch.device) -> torch.Tensor | None:
    """The values of a format's codes, float32[16], or None."""
    if not format.table:
        return None
    return torch.tensor(format.table, dtype=torch.float32, device=device)
