"""The loads of the comparison with peers, and the figures that each gives."""

from dataclasses import dataclass
from statistics import median
from time import perf_counter

import msgspec
from servers import RunningServer

from stonechat_server.bench.load import run_closed
from stonechat_server.bench.results import LevelResult, RequestRecord
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.summary import summarise
from stonechat_server.bench.targets.http_target import HttpTarget
from stonechat_server.bench.targets.target import BenchError, words_of_prompt
from stonechat_server.bench.targets.workload import SyntheticWorkload
from stonechat_server.bench.validity import run_checks
from stonechat_server.client.http import HttpClient

CALIBRATION_TOKENS = 128
"""Length of the prompt that tells how many words make a token."""
SPARE_TOKENS = 64
"""Context that a slot has beyond prompt and answer."""


@dataclass(frozen=True, slots=True)
class Row:
    """A load: `num_requests` requests, `in_flight` at a time, with these lengths in tokens."""

    name: str
    in_flight: int
    num_requests: int
    input_tokens: int
    output_tokens: int

    @property
    def context(self) -> int:
        """Tokens of context that each request needs at most, as a multiple of 256."""
        needed = max(self.input_tokens + self.output_tokens, 2 * CALIBRATION_TOKENS) + SPARE_TOKENS
        return -(-needed // 256) * 256


ROWS = {
    row.name: row
    for row in (
        Row("start", 1, 0, 49, 1),
        Row("1", 1, 4, 49, 128),
        Row("8", 8, 8, 49, 128),
        Row("32", 32, 32, 49, 128),
        Row("1000", 1, 3, 1000, 1),
        Row("3900", 1, 2, 3900, 32),
    )
}


class Measurement(msgspec.Struct, kw_only=True):
    """The figures of one server under one load in one round, by name."""

    model: str
    server: str
    row: str
    round: int
    figures: dict[str, float]


def quick(row: Row) -> Row:
    """The same load with fewer requests and shorter answers."""
    return Row(
        row.name,
        row.in_flight,
        min(row.num_requests, max(row.in_flight, 2)),
        row.input_tokens,
        min(row.output_tokens, 32),
    )


async def figures_of(row: Row, server: RunningServer, seed: int) -> dict[str, float]:
    """Load the server. Raises BenchError if an answer is not what was asked for.

    A seed has prompts of its own, so a cache helps with the beginning of the chat template only.
    """
    figures = {"start_seconds": server.seconds, "start_bytes": float(server.resident_bytes())}
    if row.num_requests == 0:
        return figures
    level, records = await _level(row, server.url, seed)
    wrong = [
        f"{c.name}: {c.detail}" for c in run_checks(records, [level.generator_cpu]) if not c.passed
    ]
    if wrong or level.num_errors:
        raise BenchError("; ".join(wrong))
    figures["busy_bytes"] = float(server.resident_bytes())
    return figures | level_figures(level, records)


async def _level(row: Row, url: str, seed: int) -> tuple[LevelResult, list[RequestRecord]]:
    settings = BenchSettings(
        base_url=url, input_tokens=CALIBRATION_TOKENS, output_tokens=row.output_tokens, seed=seed
    )
    async with HttpClient(url, {}, verify_tls=True) as client:
        target = HttpTarget(client, settings)
        await target.discover()
        num_words = await words_of_prompt(target, CALIBRATION_TOKENS)
        num_words += row.input_tokens - CALIBRATION_TOKENS
        workload = SyntheticWorkload(num_words, 0.0, seed)
        begin = perf_counter()
        run = await run_closed(
            target, workload, range(row.num_requests), row.in_flight, lambda _: None
        )
    busy = run.cpu_seconds / max(perf_counter() - begin, 1e-9)
    level = summarise("closed", row.in_flight, [run.records], run.gaps, busy, None, None)
    return level, run.records


def level_figures(level: LevelResult, records: list[RequestRecord]) -> dict[str, float]:
    """Tokens a second, milliseconds a token after the first, and prompt tokens a second.

    `prompt_rate` counts the prompt tokens that were computed in a second of the whole load, and
    `prompt_per_second` those of a request until its first text.
    """
    computed = level.prompt_tokens - (level.cached_tokens or 0)
    figures = {
        "tokens_per_second": level.tokens_per_second,
        "prompt_rate": computed / level.seconds,
        "prompt_tokens": median(record.prompt_tokens for record in records),
        "prompt_per_second": median(map(prompt_speed, records)),
    }
    if level.tpot.p50 is not None:
        figures["token_ms"] = level.tpot.p50 * 1e3
    return figures


def prompt_speed(record: RequestRecord) -> float:
    """Prompt tokens that were computed, for each second until the first text.

    A single token may have no text of its own; then its answer ends right after it.
    """
    seconds = record.e2e if record.ttft is None else record.ttft
    return (record.prompt_tokens - (record.cached_tokens or 0)) / seconds
