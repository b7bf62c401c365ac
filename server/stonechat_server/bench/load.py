"""The two ways to load a server: closed loop (fixed concurrency) and open loop (Poisson rate)."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

from stonechat_server.bench.results import RequestRecord
from stonechat_server.bench.target import Measured, Target
from stonechat_server.bench.workload import Workload

OnRecord = Callable[[RequestRecord], None]


@dataclass(slots=True)
class LevelRun:
    """All measured requests of one pass over a level."""

    records: list[RequestRecord] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0

    def add(self, measurement: Measured) -> None:
        self.records.append(measurement.record)
        self.gaps.extend(measurement.gaps)


async def run_closed(
    target: Target,
    workload: Workload,
    indices: range,
    in_flight: int,
    on_record: OnRecord,
    repeat: int = 0,
) -> LevelRun:
    """Keep `in_flight` requests open until all of `indices` are answered."""
    run = LevelRun()
    pending_indices = iter(indices)
    origin = perf_counter()

    async def worker(source: Iterator[int]) -> None:
        # The workers share `source`. next() never awaits, so each index is used once.
        for index in source:
            measurement = await target.measure(workload.prompt(index), origin=origin, repeat=repeat)
            run.add(measurement)
            on_record(measurement.record)

    with _Cpu(run):
        await asyncio.gather(
            *(worker(pending_indices) for _ in range(min(in_flight, len(indices))))
        )
    return run


def poisson_schedule(rate: float, num_requests: int, seed: str) -> list[float]:
    """Start times in seconds of `num_requests` Poisson arrivals, the first at 0."""
    generator = random.Random(seed)
    times, now = [], 0.0
    for _ in range(num_requests):
        times.append(now)
        now += generator.expovariate(rate)
    return times


async def run_open(
    target: Target,
    workload: Workload,
    indices: range,
    schedule: list[float],
    on_record: OnRecord,
    repeat: int = 0,
) -> LevelRun:
    """Start request i at `schedule[i]`, however many are in flight; latencies count from then."""
    run = LevelRun()
    origin = perf_counter()

    async def send(index: int, due: float) -> None:
        await asyncio.sleep(max(0.0, due - perf_counter()))
        measurement = await target.measure(
            workload.prompt(index), origin=origin, due=due, repeat=repeat
        )
        run.add(measurement)
        on_record(measurement.record)

    with _Cpu(run):
        await asyncio.gather(
            *(send(index, origin + start) for index, start in zip(indices, schedule, strict=True))
        )
    return run


class _Cpu:
    """Measures how much processor and wall time this process spends on a run."""

    def __init__(self, run: LevelRun) -> None:
        self._run = run

    def __enter__(self) -> None:
        self._cpu, self._wall = time.process_time(), perf_counter()

    def __exit__(self, *_: object) -> None:
        self._run.cpu_seconds = time.process_time() - self._cpu
        self._run.wall_seconds = perf_counter() - self._wall
