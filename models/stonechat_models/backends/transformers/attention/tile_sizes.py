"""Tile sizes of the attention kernels, by card and shape.

For heads of 128 in half precision, 64 sequences with 530 keys each take an H200 39 us with 32 keys
at once and 51 us with 64, since fewer programs with 64 fit on a multiprocessor. The others are
estimates: `tile_choice` measures those of decoding at load, and `scripts/gpu/sweep.py` all.
"""

from dataclasses import dataclass

import torch
import triton


@dataclass(frozen=True, slots=True)
class TileSizes:
    """How many rows and keys a program handles at once, and how Triton compiles it."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int
    waves: int = 2
    """Decode programs per multiprocessor, as far as splitting the keys can make them."""


@dataclass(frozen=True, slots=True)
class TileShape:
    """What tile sizes depend on."""

    group: int
    """Query heads per KV head."""
    head_size: int
    """The padded size: a power of two."""
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tile sizes for a card of this compute capability."""

    capability: tuple[int, int] = (0, 0)

    def decode(self, shape: TileShape) -> TileSizes:
        """Sizes for a program of the decode kernel."""
        rows = max(16, triton.next_power_of_2(shape.group))
        is_half = shape.dtype.itemsize == 2
        # A program then needs about 36 KB for two buffers of keys and values, so that several fit
        # on a multiprocessor; in float32 there is one buffer.
        keys = 64 if is_half and shape.head_size <= 64 else 32
        return TileSizes(rows, keys, num_warps=4, num_stages=3 if is_half else 2)

    def prefill(self, shape: TileShape) -> TileSizes:
        """Sizes for a program of the prefill kernel. A tile holds at least one token's heads."""
        is_half = shape.dtype.itemsize == 2
        least_rows = triton.next_power_of_2(shape.group)
        if shape.head_size > 128 or not is_half:
            return TileSizes(max(64, least_rows), 32, num_warps=4, num_stages=2)
        # Two buffers where the shared memory of a multiprocessor is large.
        stages = 3 if self.capability[0] in (9, 10) else 2
        return TileSizes(max(128, least_rows), 64, num_warps=8, num_stages=stages)
