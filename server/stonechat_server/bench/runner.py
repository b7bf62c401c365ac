"""Runs a benchmark: find the model, calibrate, warm up, measure every level, check, summarise."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from stonechat_server.bench.environment import busy_share, busy_ticks, describe_environment
from stonechat_server.bench.levels import Levels, Watcher
from stonechat_server.bench.perplexity import measure_perplexity
from stonechat_server.bench.results import BenchResult, LevelResult, RequestRecord
from stonechat_server.bench.roofline import add_shares, measure_roofline
from stonechat_server.bench.settings import DEFAULT_IMAGE_SIZE, BenchSettings
from stonechat_server.bench.speeds import measure_speeds
from stonechat_server.bench.targets.http_target import HttpTarget
from stonechat_server.bench.targets.target import Target, words_of_prompt
from stonechat_server.bench.targets.workload import (
    ImageLoad,
    ListWorkload,
    SyntheticWorkload,
    Workload,
    read_prompts_file,
    read_sharegpt,
)
from stonechat_server.bench.validity import run_checks
from stonechat_server.client.http import HttpClient
from stonechat_server.engine_protocol import EngineLike

FIRST_IMAGE_SIZE = (64, 48)
LOAD_SECONDS = 0.5
"""How long the load of the machine is watched before a run."""


async def run_bench(
    settings: BenchSettings, watcher: Watcher | None = None, engine: EngineLike | None = None
) -> BenchResult:
    """Run a benchmark with these settings: of the server, or of `engine` in this process.

    Raises BenchError if the target cannot be measured at all, and ValueError if a file of prompts
    or text is invalid. A request that fails is part of the result and makes a check fail.
    """
    async with _target(settings, engine) as target:
        result = BenchResult(
            label=settings.label or target.model,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            model=target.model,
            base_url=settings.base_url if engine is None else "this process",
            in_process=engine is not None,
            server=target.facts,
            settings=settings.described(),
            environment=describe_environment(),
            levels=[],
            checks=[],
            notes=[],
            slo=settings.slo,
            load_before=await _machine_load(),
        )
        await _measure(target, watcher or Watcher(), result)
    return result


@asynccontextmanager
async def _target(settings: BenchSettings, engine: EngineLike | None) -> AsyncIterator[Target]:
    if engine is not None:
        from stonechat_server.bench.targets.engine_target import engine_target

        async with engine_target(engine, settings) as target:
            yield target
        return
    headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    async with HttpClient(settings.base_url, headers, verify_tls=settings.verify_tls) as client:
        server = HttpTarget(client, settings)
        await server.discover()
        yield server


async def _measure(target: Target, watcher: Watcher, result: BenchResult) -> None:
    """Fill the result with what the settings ask for."""
    settings = target.settings
    if settings.roofline:
        result.roofline = measure_roofline(settings, target.facts)
    if settings.perplexity is not None:
        result.perplexity = await measure_perplexity(target, settings.perplexity, watcher)
        return
    if settings.measures_speeds:
        result.speeds, runs = await measure_speeds(target)
        records = [record for run in runs for record in run.records]
        generator_cpu = [run.generator_cpu for run in runs]
    else:
        result.levels = await Levels(target, await _workload(target), watcher).run()
        records = [record for level in result.levels for record in level.records]
        generator_cpu = [level.generator_cpu for level in result.levels]
    result.checks = run_checks(records, generator_cpu, over_http=not result.in_process)
    result.notes = _notes(target, result.levels, records)
    if result.roofline is not None:
        add_shares(result.levels, result.roofline)


async def _machine_load() -> float | None:
    """The share of all cores that is busy while this program waits."""
    before = busy_ticks()
    await asyncio.sleep(LOAD_SECONDS)
    return busy_share(before, busy_ticks())


async def _workload(target: Target) -> Workload:
    settings = target.settings
    num_words = await words_of_prompt(target, settings.input_tokens)
    if settings.prompts_file is not None:
        return ListWorkload(read_prompts_file(settings.prompts_file), settings.seed)
    if settings.sharegpt is not None:
        return ListWorkload(read_sharegpt(settings.sharegpt), settings.seed)
    images = None
    if settings.images:
        await _first_image(target)
        images = ImageLoad(
            settings.images, *(settings.image_size or DEFAULT_IMAGE_SIZE), settings.same_image
        )
    return SyntheticWorkload(num_words, settings.prefix_share, settings.seed, images=images)


async def _first_image(target: Target) -> None:
    """Send one image that no prompt has: a server may first start what reads images.

    Raises BenchError if the model takes none.
    """
    images = ImageLoad(1, *FIRST_IMAGE_SIZE, are_same=False)
    await target.count(SyntheticWorkload(4, 0.0, target.settings.seed, images=images).prompt(-1))


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
    if target.settings.images and all(r.image_tokens is None for r in all_records):
        notes.append("the server does not report how many prompt tokens are of images")
    if target.settings.prefix_share and all(level.cached_tokens is None for level in levels):
        notes.append("the server does not report how many prompt tokens came from its cache")
    return notes
