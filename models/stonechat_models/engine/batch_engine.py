"""The engine of a model without a KV cache of sequences: each step computes one batch of requests.

It has the interface of `Engine`, so that the same runners drive it.
"""

import logging
import time
import traceback
from abc import ABC, abstractmethod
from collections import abc
from typing import Generic, TypeVar

from stonechat_models.backends.base import EmbeddingModel, SpeechModel
from stonechat_models.engine.engine import MAX_CONSECUTIVE_FAILED_STEPS, STEP_FAILED
from stonechat_models.model_info import EngineStats
from stonechat_models.types import FinishReason, GenerateRequest, TokenOutput

logger = logging.getLogger(__name__)


Model = TypeVar("Model", EmbeddingModel, SpeechModel)


class BatchEngine(ABC, Generic[Model]):
    """Computes waiting requests in batches.

    `step` never raises for a fault of the model. It runs the requests of a failed step again in
    halves until it knows those that fail alone. Only those end, with `FinishReason.ERROR`.
    """

    def __init__(self, model: Model) -> None:
        assert not model.info.generates, "the model has an engine with a KV cache"
        self.model: Model = model
        self.num_steps = self.num_failed_steps = self.num_consecutive_failed_steps = 0
        self.num_prompt_tokens = self.num_generated_tokens = 0
        self.last_step_seconds = 0.0
        self._waiting: dict[str, GenerateRequest] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    @property
    def is_broken(self) -> bool:
        """True after several consecutive steps failed for every request."""
        return self.num_consecutive_failed_steps >= MAX_CONSECUTIVE_FAILED_STEPS

    def add(self, request: GenerateRequest, constraints: abc.Sequence[object] = ()) -> None:
        """Queue a request. `constraints` is empty: no grammar is followed."""
        self._waiting[request.request_id] = request

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request that waits. Unknown ids are ignored."""
        self._waiting.pop(request_id, None)

    def step(self) -> list[TokenOutput]:
        """Compute one batch. Return one output for each of its requests."""
        started = time.perf_counter()
        batch = self._next_batch()
        outputs = self._run(batch, time.monotonic())
        for request, output in zip(batch, outputs, strict=True):
            if output.finish_reason is not None:
                self.abort(request.request_id)
        self.num_steps += 1
        self.num_generated_tokens += sum(len(output.token_ids) for output in outputs)
        if batch:
            all_failed = all(output.error == STEP_FAILED for output in outputs)
            self.num_consecutive_failed_steps = (
                self.num_consecutive_failed_steps + 1 if all_failed else 0
            )
        self.last_step_seconds = time.perf_counter() - started
        return outputs

    def stats(self) -> EngineStats:
        return EngineStats(
            num_waiting=len(self._waiting),
            num_steps=self.num_steps,
            num_prompt_tokens=self.num_prompt_tokens,
            num_generated_tokens=self.num_generated_tokens,
            num_failed_steps=self.num_failed_steps,
            last_step_seconds=self.last_step_seconds,
        )

    @abstractmethod
    def _next_batch(self) -> list[GenerateRequest]:
        """Choose the requests of a step among those that wait, and count their tokens."""

    @abstractmethod
    def _compute(self, batch: list[GenerateRequest], scheduled: float) -> list[TokenOutput]:
        """Return the outputs of a batch in its order. `scheduled`: when its step began."""

    def _run(self, batch: list[GenerateRequest], scheduled: float) -> list[TokenOutput]:
        if not batch:
            return []
        try:
            return self._compute(batch, scheduled)
        except Exception as error:
            self.num_failed_steps += 1
            traceback.clear_frames(error.__traceback__)  # they keep the step's tensors alive
            if len(batch) > 1:
                logger.warning("a step of %d requests failed; it runs again in halves", len(batch))
                middle = len(batch) // 2
                return self._run(batch[:middle], scheduled) + self._run(batch[middle:], scheduled)
            logger.error("request %s failed in a step", batch[0].request_id, exc_info=error)
            return [ended(batch[0], scheduled, error=STEP_FAILED)]


def ended(
    request: GenerateRequest,
    scheduled: float,
    *,
    embedding: bytes | None = None,
    error: str | None = None,
) -> TokenOutput:
    """Return the last output of a request that has no tokens."""
    return TokenOutput(
        request_id=request.request_id,
        index=0,
        token_ids=(),
        logprobs=None,
        finish_reason=FinishReason.STOP if error is None else FinishReason.ERROR,
        num_cached_tokens=0,
        scheduled_time=scheduled,
        error=error,
        embedding=embedding,
    )
