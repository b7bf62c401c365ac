"""Runs a benchmark: find the model, calibrate, warm up, measure every level, check, summarise."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Protocol

from stonechat_server.bench.environment import describe_environment
from stonechat_server.bench.load import LevelRun, poisson_schedule, run_closed, run_open
from stonechat_server.bench.results import BenchResult, LevelResult, RequestRecord
from stonechat_server.bench.roofline import add_shares, measure_roofline
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.summary import summarise
from stonechat_server.bench.target import BenchError, Target, request_headers
from stonechat_server.bench.validity import run_checks
from stonechat_server.bench.workload import (
    ListWorkload,
    SyntheticWorkload,
    Workload,
    read_prompts_file,
    read_sharegpt,
)
from stonechat_server.client.http import HttpClient


class Watcher(Protocol):
    """Receives the progress of a run."""

    def level_started(self, name: str, num_requests: int) -> None: ...

    def request_done(self, record: RequestRecord) -> None: ...

    def level_finished(self, level: LevelResult) -> None: ...


class QuietWatcher:
    """A watcher that shows nothing."""

    def level_started(self, name: str, num_requests: int) -> None:
        pass

    def request_done(self, record: RequestRecord) -> None:
        pass

    def level_finished(self, level: LevelResult) -> None:
        pass


async def run_bench(settings: BenchSettings, watcher: Watcher) -> BenchResult:
    """Run a benchmark with these settings.

    Raises BenchError if the server cannot be measured at all, and ValueError if the file of prompts
    is invalid. A request that fails is part of the result and makes a check fail.
    """
    headers = request_headers(settings)
    async with HttpClient(settings.base_url, headers, verify_tls=settings.verify_tls) as client:
        target = Target(client, settings)
        await target.discover()
        workload = await _workload(target)
        roofline = measure_roofline(settings, target.facts) if settings.roofline else None
        indices = count()
        levels = [
            await _level(target, workload, value, indices, watcher)
            for value in settings.rates or settings.concurrency
        ]
    notes = _notes(target, levels)
    if roofline is not None:
        add_shares(levels, roofline)
    return BenchResult(
        label=settings.label or target.model,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model=target.model,
        base_url=settings.base_url,
        server=target.facts,
        settings=settings.described(),
        environment=describe_environment(),
        levels=levels,
        checks=run_checks(levels),
        notes=notes,
        roofline=roofline,
    )


async def _workload(target: Target) -> Workload:
    settings = target.settings
    num_words = await target.calibrate()
    if settings.prompts_file is not None:
        return ListWorkload(read_prompts_file(settings.prompts_file), settings.seed)
    if settings.sharegpt is not None:
        return ListWorkload(read_sharegpt(settings.sharegpt), settings.seed)
    return SyntheticWorkload(num_words, settings.prefix_share, settings.seed)


async def _level(
    target: Target,
    workload: Workload,
    value: float,
    indices: Iterator[int],
    watcher: Watcher,
) -> LevelResult:
    settings = target.settings
    is_open = bool(settings.rates)
    num_requests = settings.requests_of_level(None if is_open else int(value))
    name = f"{value:g} requests/s" if is_open else f"{value:g} in flight"
    watcher.level_started(name, num_requests * settings.repeats)
    if settings.warmup:
        warmup_indices = _take(indices, settings.warmup)
        await run_closed(target, workload, warmup_indices, settings.warmup, lambda _: None)
    passes: list[LevelRun] = []
    for repeat in range(settings.repeats):
        pass_indices = _take(indices, num_requests)
        if is_open:
            schedule = poisson_schedule(value, num_requests, f"{settings.seed}/{value}/{repeat}")
            passes.append(
                await run_open(
                    target, workload, pass_indices, schedule, watcher.request_done, repeat
                )
            )
        else:
            passes.append(
                await run_closed(
                    target, workload, pass_indices, int(value), watcher.request_done, repeat
                )
            )
    level = summarise(
        "open" if is_open else "closed",
        value,
        [run.records for run in passes],
        [gap for run in passes for gap in run.gaps],
        sum(run.cpu_seconds for run in passes) / sum(run.wall_seconds for run in passes),
        settings.slo,
    )
    watcher.level_finished(level)
    return level


def _take(indices: Iterator[int], number: int) -> range:
    first = next(indices)
    for _ in range(number - 1):
        next(indices)
    return range(first, first + number)


def _notes(target: Target, levels: Sequence[LevelResult]) -> list[str]:
    notes = [f"the server refused `{name}`, so it was not sent" for name in sorted(target.dropped)]
    if target.settings.ignore_eos and "ignore_eos" not in target.dropped:
        records = [r for level in levels for r in level.records if r.error is None]
        if records and all(r.completion_tokens != r.expected_tokens for r in records):
            notes.append(
                "the server does not honour `ignore_eos`: answers end where the model ends them; "
                "use --no-ignore-eos to measure that on purpose"
            )
    if target.settings.prefix_share and all(level.cached_tokens is None for level in levels):
        notes.append("the server does not report how many prompt tokens came from its cache")
    return notes


__all__ = ["BenchError", "QuietWatcher", "Watcher", "run_bench"]
