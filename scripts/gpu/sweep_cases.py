"""What `sweep.py` times: attention steps and their tile sizes, and matrix products."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.tile_sizes import Tiles, TileShape, TileSizes

NUM_KV_HEADS = 8
BLOCK_SIZE = 16
SHARED_MEMORY = 220 * 1024
"""Bytes of a program's shared memory that a variant of the prefill kernel may need."""
LEAST_BYTES = 120 << 20
"""What the calls of one timing read together at least: more than a cache holds."""
PRODUCTS = {  # (K, N) of a layer's products and of the head
    "1B": ((2048, 3072), (2048, 2048), (2048, 16384), (8192, 2048), (2048, 128256)),
    "8B": ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096), (4096, 128256)),
}
ROWS = (1, 2, 4, 8, 64)


@dataclass(frozen=True, slots=True)
class Case:
    """A step of `batch` sequences with `queries` query tokens each; their contexts are as long."""

    kind: str
    """decode or prefill"""
    head_size: int
    group: int
    batch: int
    queries: int
    context: int

    @property
    def shape(self) -> TileShape:
        return TileShape(self.group, self.head_size, torch.bfloat16)

    @property
    def num_bytes(self) -> int:
        """The bytes of the keys and values that one call reads."""
        return self.batch * self.context * NUM_KV_HEADS * self.head_size * 2 * 2

    @property
    def blocks_per_sequence(self) -> int:
        return -(-self.context // BLOCK_SIZE)

    @property
    def num_calls(self) -> int:
        if self.kind == "prefill":
            return 2
        least = 8 if self.num_bytes < 1 << 30 else 2
        return max(least, min(32, LEAST_BYTES // self.num_bytes))

    @property
    def flops(self) -> float:
        """Of both products, for the pairs of a query and a key that it sees."""
        keys = self.context - self.queries + (self.queries + 1) / 2
        heads = NUM_KV_HEADS * self.group
        return 4.0 * heads * self.head_size * self.batch * self.queries * keys

    def batches(self, num_blocks: int, device: torch.device) -> list[ForwardBatch]:
        """`num_calls` batches (2 on a CPU), each with blocks of its own if there are enough.

        On the device `meta`: one batch without numbers, to compile for.
        """
        width, starts = self.blocks_per_sequence, range(0, self.batch + 1)
        query_start = [self.queries * i for i in starts]
        num_tokens = query_start[-1]

        def batch(blocks: torch.Tensor) -> ForwardBatch:
            nothing = torch.empty(num_tokens, dtype=torch.int64, device=device)
            return ForwardBatch(
                nothing,
                nothing,
                nothing,
                torch.tensor(query_start, dtype=torch.int32, device=device),
                torch.full((self.batch,), self.context, dtype=torch.int32, device=device),
                blocks.reshape(self.batch, width),
                nothing,
                query_start,
                [self.context] * self.batch,
            )

        if device.type == "meta":
            return [batch(torch.empty(self.batch * width, dtype=torch.int32, device=device))]
        num_calls = self.num_calls if device.type == "cuda" else 2
        needed = num_calls * self.batch * width
        order = torch.randperm(num_blocks, device=device).int()
        order = order.repeat(-(-needed // num_blocks))[:needed]
        return [batch(blocks) for blocks in torch.split(order, self.batch * width)]


def decode_tiles(head_size: int) -> Iterator[TileSizes]:
    """The variants without `waves`: tiles of 4 to 32 KB of keys and values, most of them small."""
    for keys, warps, stages in product((32, 64, 128), (1, 2, 4), (2, 3, 4)):
        size = keys * head_size * 2 * 2
        buffers = max(1, stages - 1)
        if size * buffers <= 48 * 1024 and keys // warps >= 8 and (keys < 128 or warps == 4):
            yield TileSizes(16, keys, warps, stages)
    yield TileSizes(16, 64, 4, 3)


def prefill_tiles(head_size: int) -> Iterator[TileSizes]:
    for rows, keys, stages in product((128, 64), (64, 128, 32), (2, 3)):
        needed = (rows + (stages - 1) * keys * 2) * head_size * 2
        if needed <= SHARED_MEMORY and (keys, stages) != (32, 2):
            yield TileSizes(rows, keys, 8 if rows == 128 else 4, stages)
    yield TileSizes(128, 64, 4, 2)
    yield TileSizes(128, 128, 4, 2)


def variants(case: Case, tiles: Tiles) -> list[TileSizes]:
    """The tile sizes to try, today's first."""
    if case.kind == "prefill":
        today = tiles.prefill(case.shape)
        return [today, *(tile for tile in prefill_tiles(case.head_size) if tile != today)]
    today = tiles.decode(case.shape)
    can_split = case.batch * NUM_KV_HEADS < 132 and case.context > 2000
    all_waves = (1, 2, 4) if can_split else (today.waves,)
    found = [replace(t, waves=w) for t in decode_tiles(case.head_size) for w in all_waves]
    return list(dict.fromkeys([today, *found]))


def decode_case(head_size: int, group: int, batch: int, context: int) -> Case:
    return Case("decode", head_size, group, batch, 1, context)


def main_cases() -> list[Case]:
    """The most telling first."""
    short = [(64, 64), (128, 64), (64, 1), (128, 1), (64, 256), (128, 256), (64, 8), (128, 8)]
    decodes = [decode_case(d, 4, batch, 530) for d, batch in short]
    decodes[4:4] = [decode_case(d, 4, 1, c) for c in (32800, 4100) for d in (128, 64)]
    decodes += [decode_case(d, 4, b, 4100) for b in (64, 8) for d in (128, 64)]
    prompts = [
        Case("prefill", d, 4, b, q, c)
        for b, q, c in ((1, 8192, 8192), (8, 1024, 1024), (4, 512, 8192))
        for d in (128, 64)
    ]
    return [*decodes[:6], *prompts[:4], *decodes[6:], *prompts[4:]]


def more_cases() -> list[Case]:
    """Groups of 8, and the largest of groups of 4."""
    groups = [decode_case(d, 8, b, 530) for d in (64, 128) for b in (64, 1)]
    large = [decode_case(d, 4, b, c) for d in (128, 64) for b, c in ((8, 32800), (256, 4100))]
    return [*groups, *large]


def tiny_cases() -> list[Case]:
    return [decode_case(16, 4, 2, 40), Case("prefill", 16, 4, 1, 20, 24)]
