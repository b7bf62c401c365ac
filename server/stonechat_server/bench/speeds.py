"""Measures prompts and answers alone on the server, as llama-bench does: `pp512`, `tg128`."""

from dataclasses import replace
from time import perf_counter

from stonechat_server.bench.results import RequestRecord, Speed
from stonechat_server.bench.target import BenchError, Target
from stonechat_server.bench.workload import SyntheticWorkload

DEFAULT_REPEATS = 5
TG_PROMPT_TOKENS = 64
"""Length of the prompt before the answers of `tg`."""


async def measure_speeds(target: Target) -> tuple[list[Speed], list[RequestRecord]]:
    """Measure one request at a time. Returns the speeds, and the records for the checks.

    Raises BenchError if a request fails, or if a prompt cannot be that short.
    """
    settings = target.settings
    records: list[RequestRecord] = []
    speeds = []
    lengths = [("pp", length, length, 1) for length in settings.pp]
    lengths += [("tg", length, TG_PROMPT_TOKENS, length) for length in settings.tg]
    for name, length, num_prompt, num_answer in lengths:
        rows = await _repeated(target, num_prompt, num_answer)
        records += rows
        values = [_pp(row) if name == "pp" else _tg(row) for row in rows]
        speeds.append(Speed(name=f"{name}{length}", tokens_per_second=values))
    return speeds, records


async def _repeated(target: Target, num_prompt: int, num_answer: int) -> list[RequestRecord]:
    lengths = {"input_tokens": num_prompt, "output_tokens": num_answer}
    settings = target.settings.model_copy(update=lengths)
    alone = replace(target, settings=settings)
    workload = SyntheticWorkload(await alone.calibrate(), 0.0, settings.seed)
    rows = []
    for index in range(settings.warmup + (settings.repeats or DEFAULT_REPEATS)):
        record = (await alone.measure(workload.prompt(index), origin=perf_counter())).record
        if record.error is not None:
            raise BenchError(record.error)
        rows.append(record)
    return rows[settings.warmup :]


def _pp(record: RequestRecord) -> float:
    return (record.prompt_tokens - (record.cached_tokens or 0)) / max(record.ttft or 0.0, 1e-9)


def _tg(record: RequestRecord) -> float:
    return 1 / max(record.tpot or 0.0, 1e-9)
