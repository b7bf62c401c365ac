"""Measures prompts and answers one at a time, as llama-bench does: `pp512`, `tg128`."""

from stonechat_server.bench.load import LevelRun, run_closed
from stonechat_server.bench.results import RequestRecord, Speed
from stonechat_server.bench.targets.target import BenchError, Target, words_of_prompt
from stonechat_server.bench.targets.workload import SyntheticWorkload

DEFAULT_REPEATS = 5
TG_PROMPT_TOKENS = 64
"""Length of the prompt before the answers of `tg`."""


async def measure_speeds(target: Target) -> tuple[list[Speed], list[LevelRun]]:
    """Measure one request at a time. Returns the speeds, and the runs for the checks.

    Raises BenchError if a request fails, or if a prompt cannot be that short.
    """
    speeds, runs = [], []
    lengths = [("pp", length, length, 1) for length in target.settings.pp]
    lengths += [("tg", length, TG_PROMPT_TOKENS, length) for length in target.settings.tg]
    for name, length, num_prompt, num_answer in lengths:
        run = await _repeated(target, num_prompt, num_answer)
        runs.append(run)
        values = [prompt_speed(row) if name == "pp" else answer_speed(row) for row in run.records]
        speeds.append(Speed(name=f"{name}{length}", tokens_per_second=values))
    return speeds, runs


async def _repeated(target: Target, num_prompt: int, num_answer: int) -> LevelRun:
    settings = target.settings
    num_words = await words_of_prompt(target, num_prompt)
    workload = SyntheticWorkload(num_words, 0.0, settings.seed, num_answer)
    first, end = settings.warmup, settings.warmup + (settings.repeats or DEFAULT_REPEATS)
    await run_closed(target, workload, range(first), 1, lambda _: None)
    run = await run_closed(target, workload, range(first, end), 1, lambda _: None)
    for record in run.records:
        if record.error is not None:
            raise BenchError(record.error)
    return run


def prompt_speed(record: RequestRecord) -> float:
    """Tokens of the prompt a second. The one token of the answer may have no text: then it ends."""
    num_tokens = record.prompt_tokens - (record.cached_tokens or 0)
    return num_tokens / (record.e2e if record.ttft is None else record.ttft)


def answer_speed(record: RequestRecord) -> float:
    """Tokens a second after the first; of one token, or of tokens without text, all of the time."""
    return 1 / record.tpot if record.tpot else record.completion_tokens / record.e2e
