"""The engine of a model that only makes embeddings: each step is one batch of texts.

It has the interface of `Engine`, so that the same runners drive it. Texts of similar length, of any
requests, share a batch: a batch is padded to its longest text.
"""

import logging
import time
import traceback
from collections import abc

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.base import EmbeddingModel, Text
from stonechat_models.engine.embeddings import finish_embedding
from stonechat_models.engine.engine import MAX_CONSECUTIVE_FAILED_STEPS, STEP_FAILED
from stonechat_models.errors import StepError
from stonechat_models.model_info import EngineStats
from stonechat_models.types import EmbeddingParams, FinishReason, GenerateRequest, TokenOutput

logger = logging.getLogger(__name__)

MAX_PADDING = 0.25
"""At most this share of a batch is padding."""


class EmbeddingEngine:
    """Embeds the prompts of many requests at once.

    `step` never raises for a fault of the model. It runs the texts of a failed step again in halves
    until it knows those that fail alone. Only those end, with `FinishReason.ERROR`, and so does a
    text whose vector is not finite.
    """

    def __init__(self, model: EmbeddingModel) -> None:
        assert not model.info.generates, "the model has an engine with a KV cache"
        self.model = model
        self.num_steps = self.num_failed_steps = self.num_consecutive_failed_steps = 0
        self.num_prompt_tokens = 0
        self.last_step_seconds = 0.0
        self._waiting: dict[str, GenerateRequest] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    @property
    def is_broken(self) -> bool:
        """True after several consecutive steps failed for every text."""
        return self.num_consecutive_failed_steps >= MAX_CONSECUTIVE_FAILED_STEPS

    def add(self, request: GenerateRequest, constraints: abc.Sequence[object] = ()) -> None:
        """Queue a request. `constraints` is empty: nothing is generated."""
        assert request.embedding is not None, "the model does not generate"
        self._waiting[request.request_id] = request

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request that waits. Unknown ids are ignored."""
        self._waiting.pop(request_id, None)

    def step(self) -> list[TokenOutput]:
        """Embed one batch of texts. Return one output for each."""
        started = time.perf_counter()
        batch = self._next_batch()
        scheduled = time.monotonic()
        for request in batch:
            del self._waiting[request.request_id]
        outputs = self._run(batch, scheduled)
        self.num_steps += 1
        self.num_prompt_tokens += sum(len(request.prompt_token_ids) for request in batch)
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
            num_failed_steps=self.num_failed_steps,
            last_step_seconds=self.last_step_seconds,
        )

    def _next_batch(self) -> list[GenerateRequest]:
        """Choose the first request in order, and those whose lengths are nearest to its own.

        The padded tokens stay within `max_batch_tokens`, unless the first is longer, and within
        `MAX_PADDING`.
        """
        info, waiting = self.model.info, list(self._waiting.values())
        if not waiting:
            return []
        first = min(waiting, key=lambda r: (r.priority, r.arrival_time, r.request_id))
        target = len(first.prompt_token_ids)
        waiting.sort(key=lambda r: (r is not first, abs(len(r.prompt_token_ids) - target)))
        batch: list[GenerateRequest] = []
        longest = num_tokens = 0
        for request in waiting[: info.max_num_seqs]:
            length = len(request.prompt_token_ids)
            longest, num_tokens = max(longest, length), num_tokens + length
            padded = longest * (len(batch) + 1)
            is_wasteful = num_tokens < padded * (1 - MAX_PADDING)
            if batch and (padded > info.max_batch_tokens or is_wasteful):
                break
            batch.append(request)
        return batch

    def _run(self, batch: list[GenerateRequest], scheduled: float) -> list[TokenOutput]:
        if not batch:
            return []
        try:
            vectors = self.model.embed([_text(request) for request in batch]).numpy()
        except Exception as error:
            self.num_failed_steps += 1
            traceback.clear_frames(error.__traceback__)  # they keep the step's tensors alive
            if len(batch) > 1:
                logger.warning("a step of %d texts failed; it runs again in halves", len(batch))
                middle = len(batch) // 2
                return self._run(batch[:middle], scheduled) + self._run(batch[middle:], scheduled)
            logger.error("request %s failed in a step", batch[0].request_id, exc_info=error)
            return [_output(batch[0], scheduled, None, STEP_FAILED)]
        return [self._finish(r, scheduled, v) for r, v in zip(batch, vectors, strict=True)]

    def _finish(
        self, request: GenerateRequest, scheduled: float, vector: npt.NDArray[np.float32]
    ) -> TokenOutput:
        """Return the output of a computed text. It alone fails if its vector is not finite."""
        try:
            embedding = finish_embedding(vector, _params(request), self.model.info.embedding)
        except StepError as error:
            logger.error("request %s failed: %s", request.request_id, error)
            return _output(request, scheduled, None, str(error))
        return _output(request, scheduled, embedding)


def _output(
    request: GenerateRequest, scheduled: float, embedding: bytes | None, error: str | None = None
) -> TokenOutput:
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


def _params(request: GenerateRequest) -> EmbeddingParams:
    assert request.embedding is not None
    return request.embedding


def _text(request: GenerateRequest) -> Text:
    return Text(request.prompt_token_ids, _params(request).num_unpooled)
