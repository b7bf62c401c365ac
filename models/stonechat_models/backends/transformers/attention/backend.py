"""The interface between a model's attention layers and the kernels that compute them."""

from dataclasses import dataclass
from typing import Protocol

import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.kv_cache import LayerKV


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The parameters of a layer's attention.

    A query at position p sees the keys k with p - sliding_window < k <= p and, if there are chunks,
    k // chunk_size == p // chunk_size. If the batch has `visible_ends`, it sees the keys up to its
    end instead of up to p. Scores are scaled, then capped as
    softcap * tanh(score / softcap). `sinks` float[H] adds one score per head; that score has no
    value.
    """

    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    chunk_size: int | None = None

    def first_key(self, position: int) -> int:
        """Return the position of the first key that a query sees. It never falls with position."""
        first = 0
        if self.sliding_window is not None:
            first = max(0, position - self.sliding_window + 1)
        if self.chunk_size is not None:
            first = max(first, position // self.chunk_size * self.chunk_size)
        return first

    @property
    def is_plain(self) -> bool:
        """True if `scaled_dot_product_attention` with a mask can compute it."""
        return self.softcap is None and self.sinks is None


class AttentionBackend(Protocol):
    """Computes attention of a step's tokens over the cached keys and values.

    It is causal, except where `batch.visible_ends` lets tokens of an image see those after them.
    """

    name: str

    def attend(
        self, query: torch.Tensor, kv: LayerKV, batch: ForwardBatch, spec: AttentionSpec
    ) -> torch.Tensor:
        """Attend with `query` [T, H, Dk] over a layer's keys and values. Returns [T, H, Dv].

        This step's keys and values are already written. Query head h uses KV head h * Hkv // H.
        """
