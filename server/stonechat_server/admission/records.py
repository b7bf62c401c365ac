"""The expected cost of a request at admission, and the record of it after its end."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stonechat_server.admission.fair_queue import Cost

if TYPE_CHECKING:
    from stonechat_models import RequestTimings

EXPECTED_COMPLETION_TOKENS = 512
"""Expected completion tokens per choice of a request without a token limit."""

MAX_LISTED_REASONS = 128
"""Of more choices, the logs and the ledger have only how many ended for which reason."""

log = logging.getLogger("stonechat")


def expected_cost(
    num_prompt_tokens: int, num_choices: int, max_tokens: int, is_limited: bool
) -> Cost:
    """The expected cost of a request. `is_limited`: the client set `max_tokens`."""
    num_completion = max_tokens if is_limited else min(max_tokens, EXPECTED_COMPLETION_TOKENS)
    return Cost(num_prompt_tokens, num_choices * num_completion, num_choices)


def total_cost(costs: Sequence[Cost], max_sequences: int, max_tokens: int) -> Cost:
    """The cost of a request with several prompts that have the same number of choices.

    As many prompts run at a time as fit `max_sequences` and `max_tokens`, and at least one.
    """
    num_at_once = running_tokens = 0
    for cost in sorted(costs, key=lambda cost: -cost.tokens):
        fits = (num_at_once + 1) * cost.num_sequences <= max_sequences
        if num_at_once and not (fits and running_tokens + cost.tokens <= max_tokens):
            break
        num_at_once, running_tokens = num_at_once + 1, running_tokens + cost.tokens
    return Cost(
        sum([cost.prompt_tokens for cost in costs]),
        sum([cost.completion_tokens for cost in costs]),
        num_at_once * costs[0].num_sequences,
        running_tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRequest:
    """The record of an admitted request. It has no text unless the server is set to keep text.

    `finish_reasons` has one entry per choice of all prompts, as chat completions name it; a choice
    that did not end has `"abort"` or `"error"`. A request for embeddings has one entry in all.
    `num_choices` is the number of choices for each prompt.
    `status` is the HTTP status, 499 if the client disconnected first. An error after the first byte
    of a stream counts with its own status.
    `endpoint` is the path of its route, `/v1/chat/completions` for example, never a client's path.
    `started` and `finished` are `time.monotonic()` seconds, `created` is the start since 1970.
    """

    request_id: str
    endpoint: str
    key: str
    user: str | None
    safety_identifier: str | None
    model: str
    status: int
    error_code: str | None
    stream: bool
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    finish_reasons: tuple[str, ...]
    num_choices: int = 1
    timings: "RequestTimings | None"
    created: float
    started: float
    finished: float
    metrics_model: str = ""
    """The model in the metrics, which is not always the name that the request gave."""
    traceparent: str | None = None
    prompt: str | None = None
    completion: str | None = None

    @property
    def reason_counts(self) -> Counter[str]:
        """How many choices ended for each reason."""
        return Counter(self.finish_reasons)

    @property
    def listed_reasons(self) -> Sequence[str]:
        """The finish reasons of the choices in order; of many, each with its count: `stop*200`."""
        if len(self.finish_reasons) <= MAX_LISTED_REASONS:
            return self.finish_reasons
        return [f"{reason}*{count}" for reason, count in self.reason_counts.items()]


FinishedSink = Callable[[FinishedRequest], None]


def log_finished(record: FinishedRequest) -> None:
    """Log one line per request at level debug, without its text."""
    log.debug(
        "finished %s %s key=%s status=%d prompt_tokens=%d completion_tokens=%d %s",
        record.endpoint,
        record.request_id,
        record.key,
        record.status,
        record.num_prompt_tokens,
        record.num_completion_tokens,
        ",".join(record.listed_reasons),
    )
