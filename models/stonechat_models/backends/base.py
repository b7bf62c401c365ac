"""One step's input to a model, and the seam behind which models differ."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch

from stonechat_models.types import ModelInfo


@dataclass(slots=True)
class ForwardBatch:
    """The tokens of N sequences packed flat, T in all, of which R rows need logits.

    Sequence i owns tokens `query_start[i]:query_start[i + 1]`, the last of its first
    `context_lens[i]` tokens; position p of it is kept in the KV cache at slot
    `block_table[i, p // block_size] * block_size + p % block_size`.
    Tensors are on the model's device; the `*_list` fields are the same numbers on the host.
    """

    token_ids: torch.Tensor
    """int64[T]"""
    positions: torch.Tensor
    """int64[T]"""
    slot_mapping: torch.Tensor
    """int64[T]: where each token's key and value go."""
    query_start: torch.Tensor
    """int32[N + 1]"""
    context_lens: torch.Tensor
    """int32[N]: tokens of the sequence after this step, cached ones included."""
    block_table: torch.Tensor
    """int32[N, W], rows padded with 0."""
    logits_index: torch.Tensor
    """int64[R]: rows of the packed tokens that need logits."""
    query_start_list: list[int]
    context_lens_list: list[int]

    def to(self, device: torch.device) -> "ForwardBatch":
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            token_ids=self.token_ids.to(device),
            positions=self.positions.to(device),
            slot_mapping=self.slot_mapping.to(device),
            query_start=self.query_start.to(device),
            context_lens=self.context_lens.to(device),
            block_table=self.block_table.to(device),
            logits_index=self.logits_index.to(device),
        )

    @property
    def num_seqs(self) -> int:
        return len(self.context_lens_list)

    @property
    def num_tokens(self) -> int:
        return self.query_start_list[-1]


class CausalModel(Protocol):
    """A loaded model with its paged KV cache. Called from the engine's thread only."""

    info: ModelInfo
    """What was loaded; complete once the KV cache is allocated and the engine set its limits."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token takes over all layers."""

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        """Take the memory of the KV cache. Raises `ModelLoadError` when there is not enough."""

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole KV blocks, (source, destination), in all layers, before the next forward."""

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Write the step's keys and values, attend, and return logits float32[R, vocab_size]."""
