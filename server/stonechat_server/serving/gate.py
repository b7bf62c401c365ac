"""The checks that a request passes on its way to the engine, and the records after its end."""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stonechat_server.admission.controller import AdmissionControl, AdmissionLimits
from stonechat_server.admission.deadline import Deadline, request_timeout
from stonechat_server.admission.records import FinishedSink, Ticket, log_finished
from stonechat_server.admission.refusals import RefusedError
from stonechat_server.observability.ledger.sink import LedgerSink
from stonechat_server.observability.metrics import Metrics, TokenClock
from stonechat_server.serving.lifecycle import Lifecycle

if TYPE_CHECKING:
    from stonechat_models import ModelInfo, RequestOutput
    from stonechat_server.access.auth import Identity
    from stonechat_server.engine_protocol import EngineLike
    from stonechat_server.observability.ledger import Ledger
    from stonechat_server.observability.tracing import Tracing
    from stonechat_server.settings import Settings

CACHE_OVERCOMMIT = 4
"""The admitted requests may expect this many times the tokens that fit the KV cache. Few requests
use their whole limit, and the engine preempts sequences if too many do."""


@dataclass(slots=True)
class Run:
    """An admitted request. `num_tokens` counts the prompt and completion tokens it has used."""

    queue_seconds: float
    deadline: Deadline
    clock: TokenClock
    num_tokens: int = 0
    texts: dict[int, list[str]] | None = None
    """The text pieces of each choice; None if the ledger does not keep text."""

    async def limit(
        self, outputs: "AsyncGenerator[RequestOutput, None]"
    ) -> "AsyncGenerator[RequestOutput, None]":
        """Yield the outputs until the deadline, and time them for the metrics.

        Closes `outputs` at the end. Raises `APIError` 504 at the deadline, 503 when a shutdown
        ends the request.
        """
        async with aclosing(outputs), aclosing(self.deadline.limit(outputs)) as limited:
            async for output in limited:
                self.clock.add(output, time.monotonic())
                self.num_tokens = self.num_tokens or output.num_prompt_tokens
                for delta in output.deltas:
                    self.num_tokens += delta.num_tokens
                if self.texts is not None:
                    for delta in output.deltas:
                        self.texts.setdefault(delta.index, []).append(delta.text)
                yield output

    def completion(self) -> str | None:
        """The texts of the choices as a JSON list; None if text is not kept."""
        if self.texts is None:
            return None
        return json.dumps(["".join(self.texts[index]) for index in sorted(self.texts)])


class Operations:
    """Admission, deadlines, metrics, ledger and traces of one server."""

    def __init__(
        self,
        settings: "Settings",
        engine: "EngineLike",
        *,
        ledger: "Ledger | None" = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._settings = settings
        self.lifecycle = Lifecycle(settings.shutdown_grace)
        self.admission = AdmissionControl(_limits(settings, engine.model))
        self.metrics = Metrics(
            engine.model.name, engine.stats, self.admission, vllm_names=settings.metrics_vllm_names
        )
        self._ledger = ledger
        self._tracing = tracing
        self.sinks: list[FinishedSink] = [log_finished, self.metrics.request_finished]
        if ledger is not None:
            self.sinks.append(LedgerSink(ledger))
        if tracing is not None:
            self.sinks.append(tracing.request_finished)

    def refuse_early(self, identity: "Identity") -> None:
        """Raise `APIError` 429 or 503 if `admit` would raise it for any request of this sender."""
        with self.counting_refusals():
            self.lifecycle.check()
            self.admission.refuse_early(identity.key, identity.tenant)

    @contextmanager
    def counting_refusals(self) -> Iterator[None]:
        """Count in the metrics a `RefusedError` that leaves the `with` block."""
        try:
            yield
        except RefusedError as error:
            self.metrics.refused(error.reason)
            raise

    @asynccontextmanager
    async def admit(self, ticket: Ticket) -> AsyncIterator[Run]:
        """Wait for a slot and hold it. Raises `APIError`: 429, 503 or 504."""
        identity, settings = ticket.identity, self._settings
        deadline = Deadline(request_timeout(ticket.timeout, settings.request_timeout or None))
        entry = self.admission.slot(
            identity.key,
            ticket.cost,
            tenant=identity.tenant,
            queue_timeout=settings.queue_timeout or None,
        )
        async with AsyncExitStack() as stack:
            stack.enter_context(self.counting_refusals())
            stack.enter_context(self.lifecycle.running(deadline))
            slot = await deadline.run(stack.enter_async_context(entry))
            run = Run(slot.queue_seconds, deadline, self.metrics.token_clock())
            run.texts = {} if settings.ledger_text else None
            try:
                yield run
            finally:
                slot.used_tokens = run.num_tokens

    def close(self) -> None:
        """Write pending records and traces, and block until done. No request may follow."""
        if self._ledger is not None:
            self._ledger.close()
        if self._tracing is not None:
            self._tracing.close()


def _limits(settings: "Settings", model: "ModelInfo") -> AdmissionLimits:
    """The bounds from the settings, or else from the size of the engine.

    A few more sequences are admitted than the engine runs at once, so that it never waits for the
    server.
    """
    num_sequences = model.max_num_seqs + max(1, model.max_num_seqs // 8)
    num_tokens = model.kv_capacity_tokens * CACHE_OVERCOMMIT
    return AdmissionLimits(
        max_running_sequences=num_sequences,
        max_running_tokens=num_tokens,
        max_queued_requests=settings.max_queued_requests,
        max_queued_tokens=settings.max_queued_tokens or num_tokens * 16,
    )
