"""Runs a benchmark: find the model, calibrate, warm up, measure every level, check, summarise."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from stonechat_server.bench.environment import busy_share, busy_ticks, describe_environment
from stonechat_server.bench.levels import Levels, Watcher
from stonechat_server.bench.results import BenchResult, LevelResult, RequestRecord, Speed
from stonechat_server.bench.roofline import add_shares, measure_roofline
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.speeds import measure_speeds
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

LOAD_SECONDS = 0.5
"""How long the load of the machine is watched before a run."""


class QuietWatcher:
    """A watcher that shows nothing."""

    def level_started(self, name: str, num_requests: int | None) -> None:
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
        load_before = await _machine_load()
        roofline = measure_roofline(settings, target.facts) if settings.roofline else None
        levels: list[LevelResult] = []
        speeds: list[Speed] = []
        records: list[RequestRecord] = []
        if settings.measures_speeds:
            speeds, records = await measure_speeds(target)
        else:
            levels = await Levels(target, await _workload(target), watcher).run()
            records = [record for level in levels for record in level.records]
    notes = _notes(target, levels, records)
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
        checks=run_checks(levels, records),
        notes=notes,
        roofline=roofline,
        speeds=speeds,
        slo=settings.slo,
        load_before=load_before,
    )


async def _machine_load() -> float | None:
    """The share of all cores that is busy while this program waits."""
    before = busy_ticks()
    await asyncio.sleep(LOAD_SECONDS)
    return busy_share(before, busy_ticks())


async def _workload(target: Target) -> Workload:
    settings = target.settings
    num_words = await target.calibrate()
    if settings.prompts_file is not None:
        return ListWorkload(read_prompts_file(settings.prompts_file), settings.seed)
    if settings.sharegpt is not None:
        return ListWorkload(read_sharegpt(settings.sharegpt), settings.seed)
    return SyntheticWorkload(num_words, settings.prefix_share, settings.seed)


def _notes(
    target: Target, levels: Sequence[LevelResult], all_records: Sequence[RequestRecord]
) -> list[str]:
    notes = [f"the server refused `{name}`, so it was not sent" for name in sorted(target.dropped)]
    if target.settings.ignore_eos and "ignore_eos" not in target.dropped:
        records = [r for r in all_records if r.error is None]
        if records and all(r.completion_tokens != r.expected_tokens for r in records):
            notes.append(
                "the server does not honour `ignore_eos`: answers end where the model ends them; "
                "use --no-ignore-eos to measure that on purpose"
            )
    if target.settings.prefix_share and all(level.cached_tokens is None for level in levels):
        notes.append("the server does not report how many prompt tokens came from its cache")
    return notes


__all__ = ["BenchError", "QuietWatcher", "Watcher", "run_bench"]
