"""What a request brings to admission, and what is reported when it has ended."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stonechat_server.admission.fair_queue import Cost

if TYPE_CHECKING:
    from stonechat_models import RequestTimings
    from stonechat_server.access.auth import Identity

EXPECTED_COMPLETION_TOKENS = 512
"""What a request without a token limit is expected to generate for each choice."""

log = logging.getLogger("stonechat")


@dataclass(frozen=True, slots=True)
class Ticket:
    """Who sends the request, what it is expected to cost, and its `X-Request-Timeout` header."""

    identity: "Identity"
    cost: Cost
    timeout: str | None


def expected_cost(
    num_prompt_tokens: int, num_choices: int, max_tokens: int, is_limited: bool
) -> Cost:
    """The cost of a request; `is_limited`: `max_tokens` was asked for, not only what fits."""
    num_completion = max_tokens if is_limited else min(max_tokens, EXPECTED_COMPLETION_TOKENS)
    return Cost(num_prompt_tokens, num_choices * num_completion, num_choices)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRequest:
    """The record of an admitted request, and never its text unless the server is told to keep it.

    `finish_reasons` has one entry a choice, as the client saw it; a choice that did not end has
    `"abort"` or `"error"`. `status` is the HTTP status, 499 when the client went away first; an
    error after the first byte of a stream counts as its own status.
    `started` and `finished` are `time.monotonic()` seconds, `created` is `started` since 1970.
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
    timings: "RequestTimings | None"
    created: float
    started: float
    finished: float
    traceparent: str | None = None
    prompt: str | None = None
    completion: str | None = None


FinishedSink = Callable[[FinishedRequest], None]


def log_finished(record: FinishedRequest) -> None:
    """One line a request at level debug, without any text."""
    log.debug(
        "finished %s key=%s status=%d prompt_tokens=%d completion_tokens=%d %s",
        record.request_id,
        record.key,
        record.status,
        record.num_prompt_tokens,
        record.num_completion_tokens,
        ",".join(record.finish_reasons),
    )
