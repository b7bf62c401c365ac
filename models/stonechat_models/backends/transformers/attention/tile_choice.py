"""Chooses the tile sizes of the decode kernel at load: a few are timed on the device."""

import logging
from dataclasses import dataclass, replace

import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionBackend, AttentionSpec
from stonechat_models.backends.transformers.attention.parity_check import LayerKind, ParityCheck
from stonechat_models.backends.transformers.attention.tile_sizes import TileSizes
from stonechat_models.backends.transformers.attention.triton_backend import (
    DecodeShape,
    TritonBackend,
)
from stonechat_models.backends.transformers.cuda.kernel_timing import (
    GraphTimer,
    Timer,
    compiled_side_by_side,
)
from stonechat_models.backends.transformers.kv_cache import LayerKV
from stonechat_models.backends.transformers.verify import TOLERANCE, random_batch, relative_error
from stonechat_models.checkpoint.cache import Progress

logger = logging.getLogger(__name__)

NUM_SEQS = (1, 64)
"""The loads that tiles are timed at: few sequences, and more."""
CONTEXT = 530
LONGEST = 8192
"""The context length that the keys are split for. It is the longest possible in a CUDA graph."""
CACHE_BYTES = 256 << 20
"""Of keys and values: more than a device's cache holds. They are freed after the choice."""
NUM_CALLS = (16, 64)
"""The least and the most launches of one timing, with keys of their own as far as there are any."""
MOST_TILE_BYTES = 64 << 10
"""Of the keys and values that a program loads at once."""


@dataclass(frozen=True, slots=True)
class TileTiming:
    """The fastest tile for a shape and load, and the seconds of a launch."""

    shape: DecodeShape
    num_seqs: int
    tile: TileSizes
    seconds: float
    usual_seconds: float

    def __str__(self) -> str:
        tile = self.tile
        return (
            f"{self.num_seqs} x {self.shape[0]} heads of {self.shape[2]} with {tile.keys} keys, "
            f"{tile.num_warps} warps, {tile.num_stages} stages in {self.seconds * 1e6:.1f} us "
            f"(by the table {self.usual_seconds * 1e6:.1f})"
        )


@torch.inference_mode()
def choose_decode_tiles(
    backend: AttentionBackend,
    check: ParityCheck,
    progress: Progress,
) -> list[TileTiming]:
    """Let a Triton backend on CUDA decode with the fastest tiles. Returns the times.

    `check`: the parity check that the backend has passed. The tiles of the table stay in float32,
    and after any error. All kernels that the chosen tiles can need are compiled then.
    """
    is_half = check.dtype.itemsize == 2
    if not isinstance(backend, TritonBackend) or not is_half:
        return []
    if not GraphTimer.works_on(check.device):
        return []
    try:
        with torch.cuda.device(check.device):
            if torch.cuda.mem_get_info(check.device)[0] < 4 * CACHE_BYTES:
                raise MemoryError("too little memory is free to time others")
            timings = choose_fastest(backend, check, GraphTimer(check.device))
            torch.cuda.empty_cache()
    except Exception as error:  # after any error, the tiles stay as they are
        logger.warning("decode attention cannot be timed", exc_info=error)
        backend.decode_tiles.clear()
        progress(f"decode attention keeps its usual tiles: {error}")
        return []
    if timings:
        progress(f"tiles of decode attention: {'; '.join(map(str, timings))}")
    return timings


def choose_fastest(backend: TritonBackend, check: ParityCheck, timer: Timer) -> list[TileTiming]:
    """Choose for each shape of the check's layers, by `timer`. Layers of one shape share it."""
    shapes: dict[DecodeShape, list[LayerKind]] = {}
    for kind in check.kinds:
        shape = (kind.num_heads, kind.num_kv_heads, kind.key_size, kind.value_size)
        shapes.setdefault(shape, []).append(kind)
    timings = []
    for shape, kinds in shapes.items():
        trial = Trial.of(backend, check, shape, kinds)
        tiles = trial.right_tiles()
        chosen = [trial.fastest(tiles, num_seqs, timer) for num_seqs in NUM_SEQS]
        backend.decode_tiles[shape] = (chosen[0].tile, chosen[1].tile)
        timings += chosen
    return timings


def candidates(usual: TileSizes, bytes_per_key: int) -> list[TileSizes]:
    """The usual tile, and those that differ from it in one size and load few enough bytes."""
    others = (
        replace(usual, num_warps=usual.num_warps // 2),
        replace(usual, num_stages=usual.num_stages + 1),
        replace(usual, keys=max(32, usual.keys // 2)),
        replace(usual, keys=usual.keys * 2),
    )
    fitting = [t for t in others if t.keys * (t.num_stages - 1) * bytes_per_key <= MOST_TILE_BYTES]
    return list(dict.fromkeys((usual, *fitting)))


@dataclass(slots=True)
class Trial:
    """Decode steps of one shape with random numbers on the device."""

    backend: TritonBackend
    shape: DecodeShape
    query: torch.Tensor
    kv: LayerKV
    specs: list[AttentionSpec]
    """Those of the layers of this shape. The first is timed."""

    @classmethod
    def of(
        cls, backend: TritonBackend, check: ParityCheck, shape: DecodeShape, kinds: list[LayerKind]
    ) -> "Trial":
        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=check.device, dtype=check.dtype)

        num_heads, num_kv_heads, *sizes = shape
        block_bytes = check.block_size * num_kv_heads * sum(sizes) * check.kv_dtype.itemsize
        num_slots = max(1, CACHE_BYTES // block_bytes) * check.block_size
        keys, values = (random(num_slots, num_kv_heads, n).to(check.kv_dtype) for n in sizes)
        query, sinks = random(max(NUM_SEQS), num_heads, sizes[0]), random(num_heads)
        specs = [
            replace(k.spec, sinks=k.spec.sinks if k.spec.sinks is None else sinks) for k in kinds
        ]
        specs.sort(key=lambda spec: (spec.sliding_window or spec.chunk_size) is not None)
        return cls(backend, shape, query, LayerKV(keys, values, check.block_size), specs)

    def right_tiles(self) -> list[TileSizes]:
        """The usual tile, and the candidates that compile here and give the same numbers."""
        usual = self.backend.decode_tile(self.query, self.kv, 1)
        head_bytes = (self.shape[2] + self.shape[3]) * self.kv.keys.dtype.itemsize
        tiles = candidates(usual, head_bytes)
        few, many = (self.steps(num_seqs)[0] for num_seqs in NUM_SEQS)
        # A kernel that splits the keys is another one: one key alone is not split.
        steps = (few, replace(few, context_lens_list=[1]), many)
        cases = [(step, spec) for spec in self.specs for step in steps]
        with compiled_side_by_side():
            for tile in tiles:
                for step, spec in cases:
                    query = self.query[: step.num_seqs]
                    self.backend.compile_decode(query, self.kv, step, spec, tile)
        expected = [self.attend(usual, *case) for case in cases]
        return [usual, *(tile for tile in tiles[1:] if self._is_right(tile, cases, expected))]

    def _is_right(
        self,
        tile: TileSizes,
        cases: list[tuple[ForwardBatch, AttentionSpec]],
        expected: list[torch.Tensor],
    ) -> bool:
        limit = TOLERANCE["attention"][self.query.dtype]
        try:
            for case, right in zip(cases, expected, strict=True):
                actual = self.attend(tile, *case).float()
                largest = right.float().abs().amax(dim=(1, 2))
                error = float(relative_error(right.float(), actual, largest).max())
                if not error <= limit:
                    logger.warning("%s is off by %.2g of the largest number", tile, error)
                    return False
        except Exception as error:  # the compiler's, or too much shared memory
            logger.warning("%s cannot be used", tile, exc_info=error)
            return False
        return True

    def fastest(self, tiles: list[TileSizes], num_seqs: int, timer: Timer) -> TileTiming:
        """Time `tiles`, the usual one first, on steps with keys that no cache of a device holds."""
        steps = self.steps(num_seqs)

        def seconds(tile: TileSizes) -> float:
            def run() -> torch.Tensor:
                return [self.attend(tile, step, self.specs[0]) for step in steps][-1]

            found = timer(run) / len(steps)
            logger.info("%d sequences with %s: %.2f us", num_seqs, tile, found * 1e6)
            return found

        times = {tile: seconds(tile) for tile in tiles}
        best = min(times, key=times.__getitem__)
        return TileTiming(self.shape, num_seqs, best, times[best], times[tiles[0]])

    def steps(self, num_seqs: int) -> list[ForwardBatch]:
        """Decode steps of `num_seqs` sequences, whose blocks are scattered over the cache."""
        block_size, device = self.kv.block_size, self.query.device
        step = random_batch([(1, CONTEXT)] * num_seqs, block_size).to(device)
        num_blocks, needed = len(self.kv.keys) // block_size, step.block_table.numel()
        least, most = NUM_CALLS
        order = torch.randperm(num_blocks, device=device).int()
        num_steps = min(most, max(least, num_blocks // needed))
        order = order.repeat(-(-num_steps * needed // num_blocks))[: num_steps * needed]
        return [
            replace(
                step,
                block_table=blocks.view_as(step.block_table),
                context_lens_list=[LONGEST] * num_seqs,
            )
            for blocks in torch.split(order, needed)
        ]

    def attend(self, tile: TileSizes, step: ForwardBatch, spec: AttentionSpec) -> torch.Tensor:
        """Run a step with `tile`, which stays the chosen one."""
        self.backend.decode_tiles[self.shape] = (tile, tile)
        return self.backend.attend(self.query[: step.num_seqs], self.kv, step, spec)
