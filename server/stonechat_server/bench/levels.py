"""Measures the levels of a run: given loads, a sweep to saturation, or all requests at once."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice

from stonechat_server.bench.load import LevelRun, Pace, poisson_schedule, run_closed, run_open
from stonechat_server.bench.results import LevelResult, RequestRecord
from stonechat_server.bench.summary import summarise
from stonechat_server.bench.targets.target import Target
from stonechat_server.bench.targets.workload import Workload

MAX_IN_FLIGHT = 1024
"""A sweep ends here at the latest."""
LEAST_GAIN = 1.1
"""A sweep ends after two levels in a row that do not raise the throughput by this factor."""


class Watcher:
    """Receives the progress of a run. This one shows nothing of it."""

    def level_started(self, name: str, num_requests: int | None) -> None:
        """A level begins; None if its time ends it, not a number of requests."""

    def request_done(self, record: RequestRecord) -> None:
        """A request has ended."""

    def level_finished(self, level: LevelResult) -> None:
        """All requests of the level have ended."""


@dataclass(slots=True)
class Levels:
    """Runs levels one after the other. Every prompt of a run has an index of its own."""

    target: Target
    workload: Workload
    watcher: Watcher
    _indices: Iterator[int] = field(default_factory=count)

    async def run(self) -> list[LevelResult]:
        """Measure all levels that the settings name."""
        settings = self.target.settings
        if settings.sweep:
            return await self._sweep()
        if settings.throughput:
            return [await self.closed(settings.requests_of_level(None))]
        if settings.rates:
            return [await self._level("open", rate) for rate in settings.rates]
        return [await self.closed(in_flight) for in_flight in settings.concurrency]

    async def closed(self, in_flight: int) -> LevelResult:
        """Measure one level with this many requests in flight."""
        return await self._level("closed", in_flight)

    async def _sweep(self) -> list[LevelResult]:
        levels: list[LevelResult] = []
        best, num_flat, in_flight = 0.0, 0, 1
        while in_flight <= MAX_IN_FLIGHT and num_flat < 2:
            level = await self.closed(in_flight)
            levels.append(level)
            num_flat = 0 if level.tokens_per_second > LEAST_GAIN * best else num_flat + 1
            best = max(best, level.tokens_per_second)
            if level.num_errors:
                break
            in_flight *= 2
        return levels

    async def _level(self, kind: str, value: float) -> LevelResult:
        settings = self.target.settings
        is_open = kind == "open"
        num_requests = settings.requests_of_level(None if is_open else int(value))
        repeats = settings.repeats or 1
        name = f"{value:g} requests/s" if is_open else f"{value:g} in flight"
        total = None if settings.duration is not None else num_requests * repeats
        self.watcher.level_started(name, total)
        if settings.warmup:
            warmup = self._take(settings.warmup)
            await run_closed(self.target, self.workload, warmup, settings.warmup, lambda _: None)
        passes = [
            await (self._open_pass if is_open else self._closed_pass)(value, num_requests, repeat)
            for repeat in range(repeats)
        ]
        loads = [run.machine_load for run in passes if run.machine_load is not None]
        level = summarise(
            "open" if is_open else "closed",
            value,
            [run.records for run in passes],
            [gap for run in passes for gap in run.gaps],
            sum(run.cpu_seconds for run in passes) / sum(run.wall_seconds for run in passes),
            statistics.fmean(loads) if loads else None,
            settings.slo,
        )
        self.watcher.level_finished(level)
        return level

    def _take(self, number: int | None) -> Iterator[int]:
        """The next indices; all of them for None."""
        return islice(self._indices, number)

    @property
    def _pace(self) -> Pace:
        settings = self.target.settings
        return Pace(settings.ramp, settings.duration)

    async def _open_pass(self, rate: float, num_requests: int, repeat: int) -> LevelRun:
        settings = self.target.settings
        number = None if settings.duration is not None else num_requests
        schedule = poisson_schedule(rate, number, f"{settings.seed}/{rate}/{repeat}", self._pace)
        return await run_open(
            self.target,
            self.workload,
            self._take(len(schedule)),
            schedule,
            self.watcher.request_done,
            repeat,
        )

    async def _closed_pass(self, in_flight: float, num_requests: int, repeat: int) -> LevelRun:
        number = None if self._pace.duration is not None else num_requests
        return await run_closed(
            self.target,
            self.workload,
            self._take(number),
            int(in_flight),
            self.watcher.request_done,
            repeat,
            self._pace,
        )
