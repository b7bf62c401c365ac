"""The two ways to load a server: closed loop (fixed concurrency) and open loop (Poisson rate)."""

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

from stonechat_server.bench.environment import busy_share, busy_ticks
from stonechat_server.bench.results import RequestRecord
from stonechat_server.bench.targets.target import Measured, Target
from stonechat_server.bench.targets.workload import Workload

OnRecord = Callable[[RequestRecord], None]


@dataclass(slots=True)
class LevelRun:
    """All measured requests of one pass over a level."""

    records: list[RequestRecord] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    machine_load: float | None = None

    @property
    def generator_cpu(self) -> float:
        """The share of one core that the load generator used."""
        return self.cpu_seconds / self.wall_seconds

    def add(self, measurement: Measured) -> None:
        self.records.append(measurement.record)
        self.gaps.extend(measurement.gaps)


@dataclass(frozen=True, slots=True)
class Pace:
    """How a level begins and ends, in seconds.

    Its load rises evenly over the first `ramp` seconds. With `duration`, no request starts later,
    and those that run are waited for; without it, the number of requests ends the level.
    """

    ramp: float = 0.0
    duration: float | None = None


async def run_closed(
    target: Target,
    workload: Workload,
    indices: Iterable[int],
    in_flight: int,
    on_record: OnRecord,
    repeat: int = 0,
    pace: Pace = Pace(),
) -> LevelRun:
    """Keep `in_flight` requests open until all of `indices` are answered or the time is over."""
    run = LevelRun()
    pending_indices = iter(indices)
    origin = perf_counter()

    async def worker(number: int, source: Iterator[int]) -> None:
        if pace.ramp:
            await asyncio.sleep(pace.ramp * number / in_flight)
        # The workers share `source`. next() never awaits, so each index is used once.
        for index in source:
            if pace.duration is not None and perf_counter() - origin >= pace.duration:
                return
            measurement = await target.measure(workload.prompt(index), origin=origin, repeat=repeat)
            run.add(measurement)
            on_record(measurement.record)

    with _Cpu(run, target):
        await asyncio.gather(*(worker(number, pending_indices) for number in range(in_flight)))
    return run


def poisson_schedule(
    rate: float, num_requests: int | None, seed: str, pace: Pace = Pace()
) -> list[float]:
    """Start times in seconds of Poisson arrivals, the first at 0.

    There are `num_requests` of them, or as many as fall into the pace's duration. During the ramp
    the rate rises from 0 to `rate`.
    """
    generator = random.Random(seed)
    times: list[float] = []
    expected = 0.0  # arrivals up to the time of the next one, on average
    while num_requests is None or len(times) < num_requests:
        in_ramp = rate * pace.ramp / 2
        now = (
            math.sqrt(2 * pace.ramp * expected / rate)
            if expected < in_ramp
            else pace.ramp / 2 + expected / rate
        )
        if num_requests is None and now >= (pace.duration or 0.0):
            break
        times.append(now)
        expected += generator.expovariate(1.0)
    return times


async def run_open(
    target: Target,
    workload: Workload,
    indices: Iterable[int],
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

    with _Cpu(run, target):
        await asyncio.gather(
            *(send(index, origin + start) for index, start in zip(indices, schedule))
        )
    return run


class _Cpu:
    """Measures how much processor and wall time the load generator spends on a run."""

    def __init__(self, run: LevelRun, target: Target) -> None:
        self._run, self._target = run, target

    def __enter__(self) -> None:
        self._ticks = busy_ticks()
        self._cpu, self._wall = self._target.cpu_seconds(), perf_counter()

    def __exit__(self, *_: object) -> None:
        self._run.cpu_seconds = self._target.cpu_seconds() - self._cpu
        self._run.wall_seconds = perf_counter() - self._wall
        self._run.machine_load = busy_share(self._ticks, busy_ticks())
