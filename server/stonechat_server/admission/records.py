"""The record of an admitted request after its end."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stonechat_models import RequestTimings

MAX_LISTED_REASONS = 128
"""Of more choices, the logs and the ledger have only how many ended for which reason."""


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
    timings: RequestTimings | None
    created: float
    started: float
    finished: float
    metrics_model: str = ""
    """The model in the metrics, which is not always the name that the request gave."""
    traceparent: str | None = None
    prompt: str | None = None
    completion: str | None = None

    @property
    def listed_reasons(self) -> Sequence[str]:
        """The finish reasons of the choices in order; of many, each with its count: `stop*200`."""
        if len(self.finish_reasons) <= MAX_LISTED_REASONS:
            return self.finish_reasons
        return [f"{reason}*{count}" for reason, count in Counter(self.finish_reasons).items()]


FinishedSink = Callable[[FinishedRequest], None]
