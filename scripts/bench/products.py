"""Time products of quantised weights with rows of activations, on several libraries in turn.

Activations are quantised as part of a product. The matrices have the shapes of a Llama of 1B, and
random codes. Example, for a library that an older version has compiled and the present one:

    python scripts/bench/products.py --library old.so native --type Q4_K Q6_K --rows 1 32
"""

import argparse
import ctypes
import statistics
import time

import numpy as np

from stonechat_models.backends.native.bindings import Kind, Library, MatrixStruct, load_library
from stonechat_models.backends.native.packing import Arena

SHAPES = ((8192, 2048), (2048, 8192), (2048, 2048))
"""Outputs and inputs: gate and up, down, and attention's output."""
SMALL_SHAPES = ((1536, 576), (576, 1536), (576, 576))
"""The same of SmolLM2 135M."""


class Product:
    """A matrix that one library has packed, and its team of threads."""

    def __init__(self, library: Library, kind: Kind, n: int, k: int, threads: int) -> None:
        self.library = library
        pool = library.pool_create(threads)
        self.team = library.linear_team_create(pool)
        # No byte of a scale is above 0x3b, so no half-precision number is above 1.
        size = (n, library.row_bytes(kind, k))
        rows = np.random.default_rng(0).integers(0, 0x3C, size, dtype=np.uint8)
        order = np.arange(n, dtype=np.int32)
        self.arena = Arena(library.packed_bytes(kind, n, k))
        pointers = (rows.ctypes.data, rows.shape[1], order.ctypes.data, self.arena.address)
        library.pack(pool, kind, kind, n, k, *pointers)
        self.matrix = MatrixStruct(kind, n, k, self.arena.address, None)

    def seconds(self, x: np.ndarray, repeats: int) -> float:
        """The median time of a product with x, float32[rows, k]."""
        y = np.empty((len(x), self.matrix.n), dtype=np.float32)
        times = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            matrix = ctypes.byref(self.matrix)
            self.library.linear(self.team, matrix, x.ctypes.data, len(x), y.ctypes.data)
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--library", nargs="+", default=["native"], help="paths, or `native`")
    parser.add_argument("--type", nargs="+", default=["Q4_K", "Q6_K"], dest="types")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 128, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="the shapes of SmolLM2 135M")
    arguments = parser.parse_args()
    libraries = [
        load_library() if path == "native" else Library(path) for path in arguments.library
    ]
    print(f"| type | outputs x inputs | rows |{' µs | TOPS |' * len(libraries)} ratio |")
    print(f"|---|---|---|{'---|---|' * len(libraries)}---|")
    for name in arguments.types:
        for n, k in SMALL_SHAPES if arguments.small else SHAPES:
            products = [Product(one, Kind[name], n, k, arguments.threads) for one in libraries]
            for rows in arguments.rows:
                x = np.random.default_rng(1).standard_normal((rows, k), dtype=np.float32)
                rounds = [[p.seconds(x, arguments.repeats) for p in products] for _ in range(3)]
                best = [min(times) for times in zip(*rounds, strict=True)]
                cells = [f"{s * 1e6:,.0f} | {2e-12 * n * k * rows / s:.2f}" for s in best]
                print(
                    f"| {name} | {n} x {k} | {rows} | {' | '.join(cells)} | "
                    f"{best[0] / best[-1]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
