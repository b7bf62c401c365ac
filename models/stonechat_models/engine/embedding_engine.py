"""The engine of a model that only makes embeddings: each step is one batch of texts.

Texts of similar length, of any requests, share a batch: a batch is padded to its longest text.
"""

import logging

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.base import EmbeddingModel, Text
from stonechat_models.engine.batch_engine import BatchEngine, ended
from stonechat_models.engine.embeddings import finish_embedding
from stonechat_models.errors import StepError
from stonechat_models.types import EmbeddingParams, GenerateRequest, TokenOutput

logger = logging.getLogger(__name__)

MAX_PADDING = 0.25
"""At most this share of a batch is padding."""


class EmbeddingEngine(BatchEngine[EmbeddingModel]):
    """Embeds the prompts of many requests at once. A text whose vector is not finite fails."""

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
        self.num_prompt_tokens += sum(len(request.prompt_token_ids) for request in batch)
        return batch

    def _compute(self, batch: list[GenerateRequest], scheduled: float) -> list[TokenOutput]:
        vectors = self.model.embed([_text(request) for request in batch]).numpy()
        return [self._finish(r, scheduled, v) for r, v in zip(batch, vectors, strict=True)]

    def _finish(
        self, request: GenerateRequest, scheduled: float, vector: npt.NDArray[np.float32]
    ) -> TokenOutput:
        """Return the output of a computed text. It alone fails if its vector is not finite."""
        try:
            embedding = finish_embedding(vector, _params(request), self.model.info.embedding)
        except StepError as error:
            logger.error("request %s failed: %s", request.request_id, error)
            return ended(request, scheduled, error=str(error))
        return ended(request, scheduled, embedding=embedding)


def _params(request: GenerateRequest) -> EmbeddingParams:
    assert request.embedding is not None, "the model does not generate"
    return request.embedding


def _text(request: GenerateRequest) -> Text:
    return Text(request.prompt_token_ids, _params(request).num_unpooled)
