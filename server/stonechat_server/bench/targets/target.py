"""What a benchmark measures: a server over HTTP, or an engine in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from stonechat_server.bench.results import RequestRecord
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.targets.workload import Prompt, SyntheticWorkload
from stonechat_server.options import UserError

Facts = dict[str, str | int | float | bool | None]


class BenchError(UserError):
    """The run cannot continue; the message tells the user why."""


@dataclass(slots=True)
class Measured:
    """The record of a request, the gaps between its pieces of text in seconds, and its text."""

    record: RequestRecord
    gaps: list[float]
    text: str


class Target(Protocol):
    """Answers requests, and measures them. `dropped` names the fields that it refused."""

    settings: BenchSettings
    model: str
    facts: Facts
    dropped: set[str]

    async def count(self, prompt: Prompt) -> int:
        """The number of tokens of a prompt. Raises BenchError if the target does not answer."""

    async def measure(
        self,
        prompt: Prompt,
        *,
        origin: float,
        due: float | None = None,
        num_tokens: int | None = None,
        repeat: int = 0,
    ) -> Measured:
        """Send one request and record it. A failure is in the record; it is never raised.

        `origin` and `due` are `perf_counter` times. The times of the record count from `origin`.
        Latencies count from `due`, so that they include a late start.
        """

    async def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, as a prompt begins. Raises BenchError."""

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """The log-probabilities of all tokens but the first. Raises BenchError."""

    def cpu_seconds(self) -> float:
        """Processor time that the load generator has used so far."""


async def words_of_prompt(target: Target, input_tokens: int) -> int:
    """Find how many words make a prompt of `input_tokens`, from the target's own counts.

    Raises BenchError if it does not answer, or if the chat template alone has more tokens.
    """
    sizes = (16, 16 + max(64, input_tokens))
    seed = target.settings.seed + 1
    counts = [
        await target.count(SyntheticWorkload(size, 0.0, seed).prompt(-size)) for size in sizes
    ]
    per_word = (counts[1] - counts[0]) / (sizes[1] - sizes[0])
    if per_word <= 0:
        return input_tokens
    overhead = counts[0] - sizes[0] * per_word
    num_words = round((input_tokens - overhead) / per_word)
    if num_words < 1:
        raise BenchError(
            f"a prompt of {input_tokens} tokens is too short: the chat template alone takes about "
            f"{overhead:.0f} tokens"
        )
    return num_words


def gaps_of(times: Sequence[float]) -> list[float]:
    """The times between neighbours."""
    return [later - earlier for earlier, later in pairwise(times)]
