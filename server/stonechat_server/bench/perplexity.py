"""Perplexity on a text, in windows that move over it by a stride.

Each token counts once, with at least `context - stride` tokens before it (the first window's have
fewer). The first token of the text does not count, nor does one without a token before it.
https://huggingface.co/docs/transformers/perplexity
"""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from stonechat_server.bench.levels import Watcher
from stonechat_server.bench.results import Perplexity, RequestRecord
from stonechat_server.bench.settings import DEFAULT_CONTEXT
from stonechat_server.bench.targets.target import BenchError, Target
from stonechat_server.bench.targets.workload import read_text


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens `start` to `end` of a text, of which those from `first` on count."""

    start: int
    end: int
    first: int


def windows_of(num_tokens: int, context: int, stride: int) -> Iterator[Window]:
    """Yield the windows over a text of that many tokens."""
    start = counted = 0
    while counted < num_tokens:
        end = min(start + context, num_tokens)
        first = max(counted, start + 1)
        if first < end:
            yield Window(start, end, first)
        start, counted = start + stride, end


async def measure_perplexity(target: Target, path: Path, watcher: Watcher) -> Perplexity:
    """Measure the perplexity on a text file. Raises BenchError, and ValueError for a bad file."""
    token_ids = await target.tokenize(read_text(path))
    if len(token_ids) < 2:
        raise BenchError(f"{path} has {len(token_ids)} tokens; a perplexity needs two or more")
    context = _context(target)
    stride = target.settings.stride or max(1, context // 2)
    windows = list(windows_of(len(token_ids), context, stride))
    watcher.level_started("perplexity", len(windows))
    origin = perf_counter()
    losses: list[float] = []
    for window in windows:
        sent = perf_counter() - origin
        logprobs = await target.prompt_logprobs(token_ids[window.start : window.end])
        losses += [-value for value in logprobs[window.first - window.start - 1 :]]
        end = perf_counter() - origin
        size = window.end - window.start
        watcher.request_done(RequestRecord(start=sent, sent=sent, end=end, prompt_tokens=size))
    mean = statistics.fmean(losses)
    value = math.exp(mean)
    deviation = statistics.stdev(losses) if len(losses) > 1 else 0.0
    return Perplexity(
        text=path.name,
        num_tokens=len(token_ids),
        num_counted=len(losses),
        context=context,
        stride=stride,
        value=value,
        error=value * deviation / math.sqrt(len(losses)),
        mean_loss=mean,
        seconds=perf_counter() - origin,
    )


def _context(target: Target) -> int:
    """The length of a window, which leaves room in the model's context for the token to answer."""
    length = target.facts.get("max_model_len")
    limit = length - 1 if isinstance(length, int) and length > 0 else None
    wanted = target.settings.context_tokens
    if wanted is None:
        return min(DEFAULT_CONTEXT, limit or DEFAULT_CONTEXT)
    if limit is not None and wanted > limit:
        raise BenchError(f"--context-tokens {wanted}: the model takes at most {limit}")
    return wanted
