"""Measurements for `bench_gpu.py`: what the device can do, and what an engine makes of it."""

import time
from collections.abc import Callable
from typing import Any

import torch

from stonechat_models.engine import Engine
from stonechat_models.types import GenerateRequest, SamplingParams


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of one call, over `repeats` after a warm-up."""
    function()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronize(device)
    return (time.perf_counter() - started) / repeats


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written bytes both counted."""
    num_bytes = 4 << 30 if device.type == "cuda" else 64 << 20
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), device, 10)
    return 2 * num_bytes / seconds


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square product."""
    size = 8192 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)
    seconds = seconds_of(lambda: torch.matmul(a, b, out=out), device, 20)
    return 2 * size**3 / seconds


class Load:
    """Requests of random tokens for an engine, which it ends again."""

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
        self, batch: int, context: int, num_steps: int, **params: Any
    ) -> tuple[float, float | None]:
        """Seconds of a decode step of `batch` sequences, sampling included; share in kernels.

        The share is only known on CUDA.
        """
        ids = [self.add(context, num_steps * 3 + 64, **params) for _ in range(batch)]
        while len(self.engine.step()) < batch:
            pass
        seconds = seconds_of(self.engine.step, self._device, num_steps)
        busy = None
        if self._device.type == "cuda":
            busy = self._kernel_seconds(num_steps) / (seconds * num_steps)
        for request_id in ids:
            self.engine.abort(request_id)
        return seconds, busy

    def prefill(self, batch: int, prompt_len: int) -> float:
        """Prompt tokens a second."""
        self.add(prompt_len, 1, temperature=0.0)
        self.drain()
        for _ in range(batch):
            self.add(prompt_len, 1, temperature=0.0)
        started = time.perf_counter()
        self.drain()
        return batch * prompt_len / (time.perf_counter() - started)

    def _kernel_seconds(self, num_steps: int) -> float:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(num_steps):
                self.engine.step()
            synchronize(self._device)
        averages = profiler.key_averages()
        return float(sum(event.self_device_time_total for event in averages)) * 1e-6
