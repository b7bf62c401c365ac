"""The throughput of an engine, for `bench.py`."""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rates import ROUNDS, synchronize

from stonechat_models.engine.engine import Engine
from stonechat_models.types import GenerateRequest, SamplingParams, TokenOutput

WARM_STEPS = 6
NUM_KERNELS = 30
"""How many kernels are listed."""
DEVICE_EVENTS = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """The times of a decode step. `context` is the mean context length that it read."""

    seconds: float
    """The median of `rounds`."""
    rounds: list[float]
    host_seconds: float
    """The part of a step in which the host did not wait for the device."""
    context: float
    graphs_per_step: float


@dataclass(slots=True)
class Watched:
    """What the host did meanwhile."""

    seconds_waited: float = 0.0
    num_replays: int = 0


@contextmanager
def watched() -> Iterator[Watched]:
    """Count the replays of CUDA graphs, and the time in which the host waits for events."""
    counts = Watched()
    wait, replay = torch.cuda.Event.synchronize, torch.cuda.CUDAGraph.replay

    def timed_wait(event: Any) -> None:
        started = time.perf_counter()
        wait(event)
        counts.seconds_waited += time.perf_counter() - started

    def counted_replay(graph: Any) -> None:
        counts.num_replays += 1
        replay(graph)

    torch.cuda.Event.synchronize = timed_wait  # type: ignore[method-assign, assignment]
    torch.cuda.CUDAGraph.replay = counted_replay  # type: ignore[method-assign, assignment]
    try:
        yield counts
    finally:
        torch.cuda.Event.synchronize = wait  # type: ignore[method-assign]
        torch.cuda.CUDAGraph.replay = replay  # type: ignore[method-assign]


class Load:
    """Adds requests of random tokens to an engine, and times the steps that compute them."""

    def __init__(self, engine: Engine, device: torch.device) -> None:
        self.engine = engine
        self._device = device
        self._generator = torch.Generator().manual_seed(1)
        self._num_requests = 0

    def random_prompt(self, length: int, generator: torch.Generator | None = None) -> list[int]:
        size = (length,)
        vocab_size = self.engine.model.info.vocab_size
        prompt = torch.randint(3, vocab_size, size, generator=generator or self._generator)
        return [int(token) for token in prompt.tolist()]

    def add(self, prompt: list[int], max_tokens: int, **params: Any) -> str:
        self._num_requests += 1
        request = GenerateRequest(
            request_id=str(self._num_requests),
            prompt_token_ids=prompt,
            params=SamplingParams(max_tokens=max_tokens, ignore_eos=True, **params),
        )
        self.engine.add(request)
        return request.request_id

    def step(self) -> list[TokenOutput]:
        """Run a step of the engine. Raises `RuntimeError` if it failed for a sequence."""
        outputs = self.engine.step()
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(output.error)
        return outputs

    def drain(self) -> None:
        while self.engine.has_work:
            self.step()
        synchronize(self._device)

    @contextmanager
    def decoding(self, batch: int, context: int, num_steps: int, params: Any) -> Iterator[None]:
        """Inside, each step decodes `batch` sequences with `context` prompt tokens.

        The prompts are the same each time, so that the prefix cache spares their computation.
        """
        generator = torch.Generator().manual_seed(2)
        prompts = [self.random_prompt(context, generator) for _ in range(batch)]
        ids = [self.add(prompt, num_steps + 64, **params) for prompt in prompts]
        try:
            while len(self.step()) < batch:
                pass
            for _ in range(WARM_STEPS):
                self.step()
            yield
        finally:
            for request_id in ids:
                self.engine.abort(request_id)
            self.drain()

    def decode(self, batch: int, context: int, num_steps: int, **params: Any) -> DecodeTimes:
        """Time rounds of `num_steps` decode steps, with their sampling."""
        all_steps = ROUNDS * num_steps
        with self.decoding(batch, context, all_steps + WARM_STEPS, params), watched() as counts:
            synchronize(self._device)
            times = [time.perf_counter()]
            num_tokens = 0
            for _ in range(ROUNDS):
                for _ in range(num_steps):
                    num_tokens += len(self.engine.step())
                times.append(time.perf_counter())
        if num_tokens != batch * all_steps or self.engine.num_failed_steps:
            raise RuntimeError(f"{num_tokens} tokens in {all_steps} steps of {batch} sequences")
        rounds = [(end - start) / num_steps for start, end in pairwise(times)]
        return DecodeTimes(
            seconds=statistics.median(rounds),
            rounds=rounds,
            host_seconds=(times[-1] - times[0] - counts.seconds_waited) / all_steps,
            context=context + WARM_STEPS + all_steps / 2,
            graphs_per_step=counts.num_replays / all_steps,
        )

    def profile(self, batch: int, context: int, num_steps: int, **params: Any) -> dict[str, Any]:
        """Return the time of each kernel in a decode step; see `kernel_times`."""
        from torch.profiler import ProfilerActivity, profile

        on_cuda = self._device.type == "cuda"
        # Operators of the host are left out, since recording them would delay the device.
        activities = [ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]
        with self.decoding(batch, context, num_steps + WARM_STEPS, params):
            synchronize(self._device)
            with profile(activities=activities) as profiler:
                for _ in range(num_steps):
                    self.step()
                synchronize(self._device)
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            profiler.export_chrome_trace(file.name)
            events = json.loads(Path(file.name).read_text(errors="replace"))["traceEvents"]
        kinds = DEVICE_EVENTS if on_cuda else ("cpu_op",)
        return kernel_times([event for event in events if event.get("cat") in kinds], num_steps)

    def prefill(self, batch: int, prompt_len: int) -> float:
        """Return prompt tokens a second of `batch` new prompts."""
        self.add(self.random_prompt(prompt_len), 1, temperature=0.0)
        self.drain()
        for _ in range(batch):
            self.add(self.random_prompt(prompt_len), 1, temperature=0.0)
        started = time.perf_counter()
        self.drain()
        return batch * prompt_len / (time.perf_counter() - started)

    def closed_loop(
        self, streams: int, num_requests: int, prompt_len: int, num_tokens: int
    ) -> dict[str, float]:
        """Run `num_requests` requests, `streams` of them at once.

        Returns output tokens a second, the number of steps, how many steps had prompt tokens, the
        replays of CUDA graphs, and the share of the time in which the host did not wait.
        """
        prompts = [self.random_prompt(prompt_len) for _ in range(num_requests)]
        num_steps = num_with_prompts = running = 0
        with watched() as counts:
            started = time.perf_counter()
            while prompts or running:
                while prompts and running < streams:
                    self.add(prompts.pop(), num_tokens, temperature=0.0)
                    running += 1
                num_before = self.engine.num_prompt_tokens
                outputs = self.step()
                num_steps += 1
                num_with_prompts += self.engine.num_prompt_tokens > num_before
                for output in outputs:
                    running -= output.finish_reason is not None
            seconds = time.perf_counter() - started
        return {
            "tokens_per_second": num_requests * num_tokens / seconds,
            "steps": num_steps,
            "steps_with_prompts": num_with_prompts,
            "graph_replays": counts.num_replays,
            "host_share": 1 - counts.seconds_waited / seconds,
        }


def kernel_times(events: list[dict[str, Any]], num_steps: int) -> dict[str, Any]:
    """Return the time of each kernel and grid in a step, the one that delays it most first.

    `events` are those of a trace. Kernels that start early overlap with the one before and wait for
    it, so their own times (`microseconds`) add up to more than a step. `microseconds_added` is from
    the end of all kernels before to the end of this one, pauses included: these add up to the step.
    `milliseconds` is the time of a step in which any kernel runs.
    """
    kernels: dict[tuple[str, str], list[float]] = {}
    busy, ended = 0.0, None
    for event in sorted(events, key=lambda event: float(event["ts"] + event["dur"])):
        start, end = float(event["ts"]), float(event["ts"] + event["dur"])
        before = start if ended is None else ended
        grid = "x".join(map(str, event.get("args", {}).get("grid", ())))
        times = kernels.setdefault((event["name"], grid), [0, 0.0, 0.0])
        for i, time_or_count in enumerate((1, end - start, end - before)):
            times[i] += time_or_count / num_steps
        busy += end - max(start, before)
        ended = end
    rows: list[dict[str, Any]] = [
        {"name": name, "grid": grid, "calls": n, "microseconds": own, "microseconds_added": added}
        for (name, grid), (n, own, added) in kernels.items()
    ]
    rows.sort(key=lambda row: -row["microseconds_added"])
    return {
        "milliseconds": busy / num_steps / 1e3,
        "calls": sum(row["calls"] for row in rows),
        "kernels": rows[:NUM_KERNELS],
    }
