"""How fast a device's memory can be read: the bound on decoding one sequence."""

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from stonechat_models.hardware.cpus import usable_cpus

ARRAY_BYTES = 256 * 2**20
"""Read per thread and pass: far more than any cache a thread can call its own."""
GPU_ARRAY_BYTES = 2 * 2**30


def measure_bandwidth(device: str = "cpu", num_threads: int | None = None) -> float:
    """Bytes a second that `device` (cpu, cuda, cuda:1, mps) reads from its memory.

    On a CPU `num_threads` threads (default: one a usable processor) read separate arrays together;
    on a GPU a copy counts once for reading and once for writing. The best of several passes, in
    about a second. Raises `RuntimeError` when the device is not there or has no memory free.
    """
    if device.partition(":")[0] == "cpu":
        return _cpu_bandwidth(num_threads or usable_cpus())
    return _torch_bandwidth(device)


def _cpu_bandwidth(threads: int, num_passes: int = 4) -> float:
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


def _torch_bandwidth(device: str, num_passes: int = 8) -> float:
    import torch

    kind = torch.device(device).type
    synchronize = torch.cuda.synchronize if kind == "cuda" else torch.mps.synchronize
    source = torch.ones(GPU_ARRAY_BYTES // 8, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(num_passes):
        synchronize()
        start = perf_counter()
        target.copy_(source)
        synchronize()
        seconds.append(perf_counter() - start)
    return 2 * source.numel() * source.element_size() / min(seconds)
