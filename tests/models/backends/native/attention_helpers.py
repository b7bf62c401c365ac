"""Attention of one layer alone: the compiled kernels, and an oracle in float64."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.native.bindings import (
    BatchStruct,
    ConfigStruct,
    Kind,
    KvFormat,
    LayerStruct,
    Library,
    MatrixStruct,
    MediaStruct,
)
from stonechat_models.backends.native.packing import Arena

Floats = npt.NDArray[np.float32]

Row = tuple[int, int]
"""(sequence, position) of a query token"""


@dataclass(frozen=True)
class Shape:
    """Sizes and settings of a layer with attention."""

    heads: int = 6
    kv_heads: int = 2
    dim: int = 64
    window: int = 0
    cap: float = 0.0
    sharpness: float = 1.5  # standard deviation of the scores
    gated: bool = False
    format: KvFormat = KvFormat.BFLOAT16

    @property
    def scale(self) -> float:
        return self.sharpness * float(self.dim**-0.5)

    @property
    def record_bytes(self) -> int:
        """Of a tile and KV head."""
        return 64 * self.dim if self.format is KvFormat.BFLOAT16 else 32 * self.dim + 64


@dataclass
class Tokens:
    """Random queries, keys, values and gates of sequences, [sequence][position][head][dim].

    Sequences have the same keys and values at the first `shared` positions. Positions of a run in
    `runs` (start, end) of the first sequence see each other both ways.
    """

    shape: Shape
    lengths: Sequence[int]
    shared: int = 0
    seed: int = 0
    runs: Sequence[tuple[int, int]] = ()
    q: list[Floats] = field(init=False)
    k: list[Floats] = field(init=False)
    v: list[Floats] = field(init=False)
    z: list[Floats] = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)

        def draw(heads: int) -> list[Floats]:
            size = (heads, self.shape.dim)
            return [random.standard_normal((n, *size), dtype=np.float32) for n in self.lengths]

        self.q, self.z = draw(self.shape.heads), draw(self.shape.heads)
        self.k, self.v = draw(self.shape.kv_heads), draw(self.shape.kv_heads)
        for tensors in (self.k, self.v):
            for tensor in tensors[1:]:
                count = min(self.shared, len(tensor))
                tensor[:count] = tensors[0][:count]

    def end(self, row: Row) -> int:
        """The position before which a row sees all that its window does not hide."""
        runs = self.runs if row[0] == 0 else ()
        return next((end for start, end in runs if start <= row[1] < end), row[1] + 1)

    def expected(self, rows: Sequence[Row]) -> npt.NDArray[np.float64]:
        """The outputs of rows in float64, [rows][heads * dim]."""
        return np.stack([self._row(i, position) for i, position in rows])

    def _row(self, i: int, position: int) -> npt.NDArray[np.float64]:
        shape = self.shape
        first = max(0, position - shape.window + 1) if shape.window else 0
        end = self.end((i, position))
        group, outputs = shape.heads // shape.kv_heads, []
        for head in range(shape.heads):
            keys = self.k[i][first:end, head // group].astype(np.float64)
            values = self.v[i][first:end, head // group].astype(np.float64)
            scores = keys @ self.q[i][position, head].astype(np.float64) * shape.scale
            if shape.cap:
                scores = shape.cap * np.tanh(scores / shape.cap)
            weights = np.exp(scores - scores.max())
            out = weights @ values / weights.sum()
            if shape.gated:
                out /= 1 + np.exp(-self.z[i][position, head].astype(np.float64))
            outputs.append(out)
        return np.concatenate(outputs)


class Attention:
    """The compiled attention of a layer, with a cache of `num_blocks` blocks."""

    def __init__(
        self,
        library: Library,
        shape: Shape,
        *,
        num_blocks: int = 256,
        block_size: int = 16,
        threads: int = 2,
    ) -> None:
        self.library, self.shape, self.threads = library, shape, threads
        self.num_blocks, self.block_size = num_blocks, block_size
        self.bytes_per_block = block_size // 16 * shape.kv_heads * shape.record_bytes
        self.arena = Arena(num_blocks * self.bytes_per_block)
        self.memory = self.arena.array[: num_blocks * self.bytes_per_block]

    def run(self, tokens: Tokens, rows: Sequence[Row], tables: Sequence[Sequence[int]]) -> Floats:
        """Run a step and return its outputs. The rows of a sequence lie behind each other."""
        sequences = list(dict.fromkeys(i for i, _ in rows))
        starts = [next(n for n, row in enumerate(rows) if row[0] == i) for i in sequences]
        width = max(len(table) for table in tables)
        table = np.zeros((len(sequences), width), dtype=np.int32)
        for n, i in enumerate(sequences):
            table[n, : len(tables[i])] = tables[i]
        positions = np.array([position for _, position in rows], dtype=np.int64)
        blocks = np.array([tables[i][p // self.block_size] for i, p in rows], dtype=np.int64)
        slots = blocks * self.block_size + positions % self.block_size
        query_start = np.array([*starts, len(rows)], dtype=np.int32)
        batch = BatchStruct(
            *(len(rows), len(sequences), width, 0),
            *(None, positions.ctypes.data, slots.ctypes.data),
            *(query_start.ctypes.data, table.ctypes.data),
        )
        ends = np.array([tokens.end(row) for row in rows], dtype=np.int32)
        if tokens.runs:
            batch.media = ctypes.pointer(MediaStruct(visible_ends=ends.ctypes.data))
        projected = self._projected(tokens, rows)
        out = np.empty((len(rows), self.shape.heads * self.shape.dim), dtype=np.float32)
        self.library.attend(
            *(ctypes.byref(self._config()), ctypes.byref(self._layer())),
            *(self.arena.address, self.shape.format, self.block_size // 16, self.num_blocks),
            *(ctypes.byref(batch), projected.ctypes.data, self.threads, out.ctypes.data),
        )
        return out

    def _projected(self, tokens: Tokens, rows: Sequence[Row]) -> Floats:
        sources = [tokens.q, tokens.k, tokens.v, *([tokens.z] if self.shape.gated else [])]
        parts = [[source[i][p].ravel() for source in sources] for i, p in rows]
        return np.stack([np.concatenate(row) for row in parts])

    def _config(self) -> ConfigStruct:
        shape = self.shape
        return ConfigStruct(
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.dim,
            hidden=32,
            attention_scale=shape.scale,
            attention_cap=shape.cap,
        )

    def _layer(self) -> LayerStruct:
        shape = self.shape
        q, kv = shape.heads * shape.dim, shape.kv_heads * shape.dim
        layer = LayerStruct(window=shape.window, rotary=-1)
        layer.q, layer.k, layer.v = (MatrixStruct(Kind.F32, n, 32) for n in (q, kv, kv))
        layer.z = MatrixStruct(Kind.F32, q if shape.gated else 0, 32)
        layer.o = MatrixStruct(Kind.F32, 32, q)
        return layer
