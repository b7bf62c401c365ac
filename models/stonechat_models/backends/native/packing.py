"""Packs matrices from a store into one block of memory, in the layout of `csrc/matrix.h`."""

import mmap
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.native.bindings import (
    PANEL,
    Kind,
    Library,
    MatrixStruct,
)
from stonechat_models.backends.native.tensor_source import Chunk, Rows, Stack
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_info import size_text

ALIGNMENT = 64
FIRST_LINE_SECONDS, NEXT_LINE_SECONDS = 2.0, 5.0
"""When the first line about a long load comes, and the seconds between the next ones."""


@dataclass(frozen=True, slots=True)
class MatrixSpec:
    """A matrix to pack: its rows, the packed format, and a bias float32[n] or None."""

    rows: Rows | Stack
    kind: Kind
    bias: npt.NDArray[np.float32] | None = None


def packed_bytes(library: Library, spec: MatrixSpec) -> int:
    """Bytes of a packed matrix, its padding included, but not its bias."""
    size = library.packed_bytes(spec.kind, spec.rows.n, spec.rows.k)
    return -(-size // ALIGNMENT) * ALIGNMENT


class Arena:
    """Zeroed memory, aligned to pages. The system provides each page when it is first touched.

    `huge_pages` are for memory that is touched as a whole: fewer of them are missed by the
    processor's table of pages, but each takes 2 MB at once.
    """

    def __init__(self, num_bytes: int, *, huge_pages: bool = False) -> None:
        try:  # shared memory, the default, seldom has huge pages
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._memory = mmap.mmap(-1, max(num_bytes, mmap.PAGESIZE), flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            raise ModelLoadError(f"cannot allocate {size_text(num_bytes)}: {error}") from error
        if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # the kernel has no huge pages
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.array: npt.NDArray[np.uint8] = np.frombuffer(self._memory, dtype=np.uint8)
        self.address = self.array.ctypes.data


class PackedWeights:
    """Packed matrices in one arena, with their biases and a model's other vectors.

    If packing takes long, `progress` gets a line now and then with an estimate of what is left.
    """

    def __init__(
        self,
        library: Library,
        matrices: Iterable[MatrixSpec],
        threads: int,
        progress: Progress = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._library = library
        self._vectors: list[npt.NDArray[np.float32]] = []
        specs = list(matrices)
        sizes = [packed_bytes(library, spec) for spec in specs]
        self.num_bytes = sum(sizes)
        self._arena = Arena(self.num_bytes, huge_pages=True)
        self.matrices: list[MatrixStruct] = []
        estimate = _Estimate(self.num_bytes, progress, clock)
        pool = library.pool_create(threads)
        try:
            offsets = [0, *np.cumsum(sizes).tolist()]
            for spec, start, end in zip(specs, offsets, offsets[1:], strict=False):
                self.matrices.append(self._pack(pool, spec, self._arena.address + start))
                spec.rows.release()
                estimate.advance(end)
        finally:
            library.pool_destroy(pool)

    def _pack(self, pool: int, spec: MatrixSpec, address: int) -> MatrixStruct:
        rows, at, done = spec.rows, address, 0
        for chunk in rows.chunks(spec.kind):
            index = np.ascontiguousarray(chunk.index, dtype=np.int32)
            stride = chunk.data.shape[-1]
            _check_chunk(self._library, rows, chunk, done)
            done += index.size
            self._library.pack(
                *(pool, spec.kind, chunk.source, index.size, rows.k),
                *(chunk.data.ctypes.data, stride, index.ctypes.data, at),
            )
            at += self._library.packed_bytes(spec.kind, index.size, rows.k)
        if done != rows.n:
            raise _misplaced(rows)
        return MatrixStruct(spec.kind, rows.n, rows.k, address, self._bias(spec))

    def _bias(self, spec: MatrixSpec) -> int | None:
        if spec.bias is None:
            return None
        padded = np.zeros(-(-spec.rows.n // PANEL) * PANEL, dtype=np.float32)
        padded[: spec.rows.n] = spec.bias
        return self.vector(padded)

    def vector(self, values: npt.NDArray[np.float32]) -> int:
        """Keep a vector as long as this object lives, and return its address."""
        array = np.ascontiguousarray(values, dtype=np.float32)
        self._vectors.append(array)
        return int(array.ctypes.data)


class _Estimate:
    """Says how far a long task is, and how long it may still take."""

    def __init__(self, total: int, progress: Progress, clock: Callable[[], float]) -> None:
        self._total, self._progress, self._clock = total, progress, clock
        self._started = clock()
        self._next_line = self._started + FIRST_LINE_SECONDS

    def advance(self, done: int) -> None:
        """`done` of the total, above 0, is done."""
        now = self._clock()
        if now < self._next_line or not done:
            return
        self._next_line = now + NEXT_LINE_SECONDS
        left = (now - self._started) * (self._total - done) / done
        self._progress(
            f"loading weights: {size_text(done)} of {size_text(self._total)}, "
            f"about {left:.0f} s left"
        )


def _check_chunk(library: Library, rows: Rows | Stack, chunk: Chunk, done: int) -> None:
    """The border for rows of a file: each lies in its tensor, and all fit into their matrix."""
    count, stride = chunk.data.shape
    fits = done % PANEL == 0 and 0 < chunk.index.size <= rows.n - done
    if (
        not fits
        or stride != library.row_bytes(chunk.source, rows.k)
        or not 0 <= chunk.index.min() <= chunk.index.max() < count
    ):
        raise _misplaced(rows)


def _misplaced(rows: Rows | Stack) -> ModelLoadError:
    return ModelLoadError(f"the rows of {rows.name} do not lie in their tensor")
