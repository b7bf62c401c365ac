"""Measurements for `bench.py`: the rates of the device, and the throughput of an engine on it."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from stonechat_models.engine.engine import Engine
from stonechat_models.types import GenerateRequest, SamplingParams

NUM_KERNELS = 12
"""How many kernels are listed by name, the slowest first."""


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the mean seconds of a call, over `repeats` calls after a warm-up."""
    function()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronize(device)
    return (time.perf_counter() - started) / repeats


def bandwidth(device: torch.device) -> float:
    """Return bytes a second of a large copy. Read and written bytes both count."""
    num_bytes = 4 << 30 if device.type == "cuda" else 64 << 20
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), device, 10)
    return 2 * num_bytes / seconds


def read_bandwidth(device: torch.device) -> float:
    """Return bytes a second of a sum over a large tensor. It only reads, as steps read weights."""
    num_bytes = 4 << 30 if device.type == "cuda" else 64 << 20
    source = torch.zeros(num_bytes // 4, dtype=torch.float32, device=device)
    return num_bytes / seconds_of(source.sum, device, 10)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating-point operations a second of a large square matrix product."""
    size = 8192 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)
    seconds = seconds_of(lambda: torch.matmul(a, b, out=out), device, 20)
    return 2 * size**3 / seconds


@dataclass(slots=True)
class DecodeTimes:
    """The times of a decode step. `context` is the mean context length that it read."""

    seconds: float
    context: float
    kernel_seconds: float | None = None
    """Sum over all kernels. None: they were not profiled."""
    kernels: dict[str, float] = field(default_factory=dict)
    """Seconds per step, by kernel name."""


class Load:
    """Adds requests of random tokens to an engine, and times the steps that compute them."""

    def __init__(self, engine: Engine, device: torch.device) -> None:
        self.engine = engine
        self._device = device
        self._generator = torch.Generator().manual_seed(1)
        self._num_requests = 0

    def add(self, prompt_len: int, max_tokens: int, **params: Any) -> str:
        vocab_size = self.engine.model.info.vocab_size
        prompt = torch.randint(3, vocab_size, (prompt_len,), generator=self._generator)
        self._num_requests += 1
        request = GenerateRequest(
            request_id=str(self._num_requests),
            prompt_token_ids=prompt.tolist(),
            params=SamplingParams(max_tokens=max_tokens, ignore_eos=True, **params),
        )
        self.engine.add(request)
        return request.request_id

    def drain(self) -> None:
        while self.engine.has_work:
            self.engine.step()
        synchronize(self._device)

    def decode(
        self, batch: int, context: int, num_steps: int, *, profiled: bool = True, **params: Any
    ) -> DecodeTimes:
        """Time decode steps, with sampling, of `batch` sequences with `context` prompt tokens."""
        num_at_start = self._num_generated
        ids = [self.add(context, num_steps * 3 + 64, **params) for _ in range(batch)]
        while len(self.engine.step()) < batch:
            pass
        num_before = self._num_generated
        seconds = seconds_of(self.engine.step, self._device, num_steps)
        mean_generated = (num_before + self._num_generated) / 2 - num_at_start
        times = DecodeTimes(seconds, context + mean_generated / batch)
        if profiled and self._device.type == "cuda":
            times.kernels = self._kernels(num_steps)
            times.kernel_seconds = sum(times.kernels.values())
            times.kernels = dict(Counter(times.kernels).most_common(NUM_KERNELS))
        for request_id in ids:
            self.engine.abort(request_id)
        self.drain()
        return times

    def prefill(self, batch: int, prompt_len: int) -> float:
        """Return prompt tokens a second of `batch` prompts."""
        self.add(prompt_len, 1, temperature=0.0)
        self.drain()
        for _ in range(batch):
            self.add(prompt_len, 1, temperature=0.0)
        started = time.perf_counter()
        self.drain()
        return batch * prompt_len / (time.perf_counter() - started)

    def closed_loop(
        self, streams: int, num_requests: int, prompt_len: int, num_tokens: int
    ) -> float:
        """Return output tokens a second of `num_requests` requests, `streams` of them at once."""
        started = time.perf_counter()
        num_left, running = num_requests, 0
        while num_left or running:
            while num_left and running < streams:
                self.add(prompt_len, num_tokens, temperature=0.0)
                num_left, running = num_left - 1, running + 1
            for output in self.engine.step():
                if output.error is not None:
                    raise RuntimeError(output.error)
                running -= output.finish_reason is not None
        return num_requests * num_tokens / (time.perf_counter() - started)

    @property
    def _num_generated(self) -> int:
        return self.engine.stats().num_generated_tokens

    def _kernels(self, num_steps: int) -> dict[str, float]:
        """Profile `num_steps` steps. Return the seconds per step of each kernel."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(num_steps):
                self.engine.step()
            synchronize(self._device)
        return {
            event.key: float(event.self_device_time_total) * 1e-6 / num_steps
            for event in profiler.key_averages()
        }
