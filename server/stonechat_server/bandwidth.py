"""How fast this machine's memory can be read: the bound on decoding one sequence."""

import os
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

ARRAY_BYTES = 256 * 2**20
"""Read per thread and pass: far more than any cache a thread can call its own."""


def measure_read_bandwidth(num_threads: int | None = None, num_passes: int = 4) -> float:
    """Bytes a second that `num_threads` threads (default: one a usable processor) read together.

    The best of `num_passes` passes over separate arrays; takes well under a second a thread.
    """
    threads = num_threads or _usable_cpus()
    with ThreadPoolExecutor(threads) as pool:
        arrays = list(pool.map(lambda _: _touched_array(), range(threads)))
        seconds = []
        for _ in range(num_passes):
            start = perf_counter()
            list(pool.map(_read, arrays))
            seconds.append(perf_counter() - start)
    return threads * ARRAY_BYTES / min(seconds)


def _touched_array() -> NDArray[np.float32]:
    return np.ones(ARRAY_BYTES // 4, dtype=np.float32)


def _read(array: NDArray[np.float32]) -> float:
    # A minimum keeps one running vector, so the reads are what takes the time; it also lets go
    # of the interpreter lock.
    return float(array.min())


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
