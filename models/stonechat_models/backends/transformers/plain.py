"""Runs any causal model as transformers does, one sequence after the other.

It serves what neither the paged cache nor the pool of recurrent states can: attention with masks
or biases of its own, caches of its own, no cache at all. It is slow, and shares no prefixes.
"""

import copy
import inspect
from dataclasses import replace
from typing import Any

import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.interface import ProbeContext
from stonechat_models.backends.transformers.cache_argument import cache_argument
from stonechat_models.backends.transformers.head_tap import HeadTap, head_size
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.model_info import ModelInfo

LENGTHS = (8, 40)
"""Lengths in tokens of the prompts that show what a cache takes per token."""


class PlainModel:
    """A `CausalModel` whose slots hold the model's cache objects.

    Without `caches`, a slot holds a sequence's tokens, and each step computes all of them again.
    """

    def __init__(self, module: torch.nn.Module, info: ModelInfo, *, caches: bool = True) -> None:
        """Raises `UnsupportedModelError` if the module does not run in this way."""
        self.module = module
        self.device = module.get_input_embeddings().weight.device  # type: ignore[operator]
        parameters = inspect.signature(module.forward).parameters
        self._cache_name = cache_argument(module.forward)
        if caches and not self._cache_name:
            raise UnsupportedModelError("the model takes no cache")
        self.uses_caches = caches
        self._takes_positions = "position_ids" in parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self._caches: dict[int, Any] = {}
        self.probe = ProbeContext([0])
        """Empty: no layer calls the paged attention."""
        kv_bytes, state_bytes = self._measure()
        self.info = replace(
            info,
            backend="plain",
            attention_backend="",
            kv_bytes_per_token=kv_bytes,
            keeps_state=True,
            packs_prompts=False,
            state_bytes=state_bytes,
        )

    @property
    def hidden_size(self) -> int:
        return head_size(self.module)

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        """Only count the blocks: each cache grows with its sequence."""
        self._caches = {}
        self.info = replace(self.info, num_blocks=num_blocks, block_size=block_size)

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Nothing lies in blocks."""

    def copy_states(self, pairs: list[tuple[int, int]]) -> None:
        for source, destination in pairs:
            self._caches[destination] = copy.deepcopy(self._caches[source])

    def free_states(self, slots: list[int]) -> None:
        for slot in slots:
            self._caches.pop(slot, None)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        rows = []
        for i, slot in enumerate(batch.state_slots):
            first, end = batch.query_start_list[i : i + 2]
            start = batch.context_lens_list[i] - (end - first)
            cache = self._caches.pop(slot, None)  # a failed call leaves none
            num_rows = batch.num_rows_list[i]
            logits, self._caches[slot] = self._call(
                batch.token_ids[first:end],
                batch.positions[first:end],
                cache if start else None,
                max(1, num_rows),
            )
            rows.append(logits[:num_rows])
        return torch.cat(rows).float()

    def forward_hidden(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        with HeadTap(self.module) as tap:
            logits = self.forward(batch)
        rows = []
        for i, num_rows in enumerate(batch.num_rows_list):
            rows.append(tap.call(i)[0, -max(1, num_rows) :][:num_rows])
        return logits, torch.cat(rows)

    def _call(
        self, token_ids: torch.Tensor, positions: torch.Tensor, cache: Any, num_rows: int
    ) -> tuple[torch.Tensor, Any]:
        """Return the logits [R, V] of the last `num_rows` tokens, and the cache after them."""
        if not self.uses_caches:
            tokens = token_ids if cache is None else torch.cat([cache, token_ids])
            output = self.module(input_ids=tokens.unsqueeze(0), use_cache=False)
            return output.logits[0, -num_rows:], tokens
        extra: dict[str, Any] = {self._cache_name: cache}
        if self._takes_positions:
            extra["position_ids"] = positions.unsqueeze(0)
        if self._keeps_logits:
            extra["logits_to_keep"] = num_rows
        output = self.module(input_ids=token_ids.unsqueeze(0), use_cache=True, **extra)
        return output.logits[0, -num_rows:], getattr(output, self._cache_name)

    @torch.inference_mode()
    def _measure(self) -> tuple[int, int]:
        """Return how many bytes a cache has per token, and how many whatever its length is."""
        sizes = []
        for length in LENGTHS:
            ids = torch.zeros(length, dtype=torch.int64, device=self.device)
            positions = torch.arange(length, device=self.device)
            try:
                _, cache = self._call(ids, positions, None, 1)
            except Exception as error:
                raise UnsupportedModelError(f"a forward pass fails: {error}") from error
            if cache is None:
                raise UnsupportedModelError("the model returns no cache")
            sizes.append(_num_bytes(cache, set()))
        per_token = max(0, (sizes[1] - sizes[0]) // (LENGTHS[1] - LENGTHS[0]))
        return per_token, max(0, sizes[0] - LENGTHS[0] * per_token)


def _num_bytes(value: Any, seen: set[int]) -> int:
    """Bytes of all tensors in a cache object."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_num_bytes(v, seen) for v in value.values())
    if isinstance(value, list | tuple):
        return sum(_num_bytes(v, seen) for v in value)
    return _num_bytes(vars(value), seen) if hasattr(value, "__dict__") else 0
