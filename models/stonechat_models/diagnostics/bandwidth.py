"""Measures how fast a device's memory is read, which bounds the decoding of one sequence."""

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np

from stonechat_models.hardware.cpus import usable_cpus

ARRAY_BYTES = 256 * 2**20
"""Bytes that each thread reads per pass: far more than its share of any cache."""
GPU_ARRAY_BYTES = 2 * 2**30


def measure_bandwidth(device: str = "cpu", num_threads: int | None = None) -> float:
    """Return how many bytes per second `device` (cpu, cuda, cuda:1, mps) reads from its memory.

    On a CPU, `num_threads` threads (default: one per usable processor) read separate arrays at the
    same time. On a GPU, a copy counts twice: once for reading and once for writing. The result is
    the best of several passes and takes about a second. Raises `RuntimeError` when the device does
    not exist or has no free memory, and `AssertionError` when torch is built without CUDA.
    """
    if device.partition(":")[0] == "cpu":
        return _cpu_bandwidth(num_threads or usable_cpus())
    return _torch_bandwidth(device)


def _cpu_bandwidth(threads: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        arrays = list(pool.map(np.ones, [ARRAY_BYTES // 8] * threads))
        seconds = []
        for _ in range(4):
            start = perf_counter()
            # A minimum needs only one running vector, so reading takes most of the time. numpy
            # releases the interpreter lock meanwhile.
            list(pool.map(np.min, arrays))
            seconds.append(perf_counter() - start)
    return threads * ARRAY_BYTES / min(seconds)


def _torch_bandwidth(device: str) -> float:
    import torch

    kind = torch.device(device).type
    synchronize = torch.cuda.synchronize if kind == "cuda" else torch.mps.synchronize
    source = torch.ones(GPU_ARRAY_BYTES // 8, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(8):
        synchronize()
        start = perf_counter()
        target.copy_(source)
        synchronize()
        seconds.append(perf_counter() - start)
    return 2 * source.numel() * source.element_size() / min(seconds)
