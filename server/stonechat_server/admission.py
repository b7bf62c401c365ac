"""What stands between a parsed request and the engine, and what is reported when it has ended."""

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from stonechat_models import RequestTimings
    from stonechat_server.auth import Identity
    from stonechat_server.prepare import Plan

log = logging.getLogger("stonechat")


class Admission(Protocol):
    """Decides whether and when a request may run."""

    def admit(self, identity: "Identity", plan: "Plan") -> AbstractAsyncContextManager[None]:
        """Entered before the engine is asked and left when the request has ended, however it
        ended. Entering may wait, or raise `APIError` (such as a 429).
        """


class OpenAdmission:
    """Admits everything at once; the engine's own queue orders the work."""

    @asynccontextmanager
    async def admit(self, identity: "Identity", plan: "Plan") -> "AsyncIterator[None]":
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRequest:
    """The record of a request that reached the engine; never the text.

    `finish_reasons` has one entry a choice; a choice that did not end has `"abort"` or `"error"`.
    `status` is the HTTP status, 499 when the client went away first.
    """

    request_id: str
    key_id: str
    user: str | None
    model: str
    status: int
    stream: bool
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    finish_reasons: tuple[str, ...]
    timings: "RequestTimings | None"
    started: float
    finished: float


FinishedSink = Callable[[FinishedRequest], None]


def log_finished(record: FinishedRequest) -> None:
    """One line a request at level debug."""
    log.debug("finished %s", record)
