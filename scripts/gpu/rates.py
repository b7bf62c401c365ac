"""The rates of a device, for `bench.py`."""

import statistics
import time
from collections.abc import Callable

import torch

ROUNDS = 3
"""Each figure is the median of this many."""


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the seconds of a call after a warm-up: the median of rounds of `repeats` calls."""
    function()
    rounds = []
    for _ in range(ROUNDS):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(repeats):
            function()
        synchronize(device)
        rounds.append((time.perf_counter() - started) / repeats)
    return statistics.median(rounds)


def bandwidth(device: torch.device) -> float:
    """Return bytes a second of a large copy. Read and written bytes both count."""
    source = _numbers(device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device, 10)


def read_bandwidth(device: torch.device) -> float:
    """Return bytes a second of a sum over a large tensor. It only reads, as steps read weights."""
    source = _numbers(device)
    return source.nbytes / seconds_of(source.sum, device, 10)


def _numbers(device: torch.device) -> torch.Tensor:
    """A large tensor of random numbers: constant ones may be read faster."""
    return torch.randn(1 << 30 if device.type == "cuda" else 1 << 22, device=device)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating-point operations a second of a large square matrix product."""
    size = 8192 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)
    seconds = seconds_of(lambda: torch.matmul(a, b, out=out), device, 20)
    return 2 * size**3 / seconds
