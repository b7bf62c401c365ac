"""The attention function that Hugging Face models call, and the context of a step.

The function is registered under one name with `transformers.AttentionInterface`. The context is a
keyword argument of the model's forward, and transformers passes it down to every layer.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionBackend, AttentionSpec
from stonechat_models.backends.transformers.attention.declared import (
    chunk_size,
    rescaled,
    scales_by_position,
)
from stonechat_models.backends.transformers.attention.dense import attend_dense, visible
from stonechat_models.backends.transformers.attention.parity_check import LayerKind
from stonechat_models.backends.transformers.kv_cache import KVCache, LayerKVShape
from stonechat_models.errors import UnsupportedModelError

ATTENTION_NAME = "stonechat_paged"


@dataclass(slots=True)
class PagedContext:
    """A step over the KV cache.

    The model may compute more rows than the step has tokens. Such padding rows are not stored and
    do not attend, and their outputs are zeros.
    """

    batch: ForwardBatch
    cache: KVCache
    backend: AttentionBackend
    bidirectional_layers: frozenset[int] = frozenset()
    """The layers in which the tokens of an image attend in both directions."""
    _batches: dict[torch.device, ForwardBatch] = field(default_factory=dict)
    _causal_batches: dict[torch.device, ForwardBatch] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        slots, _, _ = self.places(layer, query.device)
        num_tokens = len(slots)
        self.cache.write(layer, slots, key[:num_tokens], value[:num_tokens])
        return self.attend_kept(layer, query, spec)

    def places(
        self, layer: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where the step's keys and values go.

        Returns slots int64[T], and the cache's keys and values of the layer, [slots, Hkv, D].
        """
        slots = self._batch_on(device).slot_mapping
        return slots, self.cache.keys[layer], self.cache.values[layer]

    def attend_kept(self, layer: int, query: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """As `attend`, but the step's keys and values are already in the cache."""
        cache, batch = self.cache, self._batch_on(query.device)
        if batch.visible_ends is not None and layer not in self.bidirectional_layers:
            batch = self._causal_batches.setdefault(query.device, batch.without_visible_ends())
        num_tokens, num_rows = batch.num_tokens, query.shape[0]
        attended = self.backend.attend(query[:num_tokens], cache.layer(layer), batch, spec)
        if num_rows == num_tokens:
            return attended
        return F.pad(attended, (0, 0, 0, 0, 0, num_rows - num_tokens))

    def positions(self, num_rows: int, device: torch.device) -> torch.Tensor:
        """The position of each row's token, int64[num_rows]; 0 for padding rows."""
        batch = self._batch_on(device)
        return F.pad(batch.positions, (0, num_rows - batch.num_tokens))

    def _batch_on(self, device: torch.device) -> ForwardBatch:
        """The step's batch on the layer's device. A model may be spread over several devices."""
        if device not in self._batches:
            self._batches[device] = self.batch.to(device)
        return self._batches[device]


@dataclass(slots=True)
class ProbeContext:
    """A packed forward without a cache. It records what each layer keeps per token.

    `query_start` lists the start of each packed sequence, and the end of the last.
    """

    query_start: list[int]
    shapes: dict[int, LayerKVShape] = field(default_factory=dict)
    devices: dict[int, torch.device] = field(default_factory=dict)
    kinds: list[LayerKind] = field(default_factory=list)
    """The distinct kinds of attention layers."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        if layer in self.shapes:
            raise UnsupportedModelError(f"layer {layer} calls its attention more than once")
        shape = LayerKVShape(key.shape[1], key.shape[2], value.shape[2])
        self.shapes[layer] = shape
        self._add_kind(
            LayerKind(query.shape[1], shape.num_kv_heads, shape.key_size, shape.value_size, spec)
        )
        self.devices[layer] = key.device
        parts = []
        for start, end in zip(self.query_start, self.query_start[1:], strict=False):
            q, k, v = (x[start:end].transpose(0, 1).unsqueeze(0) for x in (query, key, value))
            positions = torch.arange(end - start, device=query.device)
            mask = visible(positions, positions, spec).unsqueeze(0)
            parts.append(attend_dense(q, k, v, mask, spec).squeeze(0).transpose(0, 1))
        return torch.cat(parts)

    def positions(self, num_rows: int, device: torch.device) -> torch.Tensor:
        """The position of each row's token, int64[num_rows]."""
        starts = zip(self.query_start, self.query_start[1:], strict=False)
        return torch.cat([torch.arange(end - start, device=device) for start, end in starts])

    def _add_kind(self, kind: LayerKind) -> None:
        if all(other.key != kind.key for other in self.kinds):
            self.kinds.append(kind)


def register_attention() -> None:
    """Register the attention function with transformers. May be called again.

    No mask function has this name, so models build no mask. They therefore never wait for the
    device to learn whether sequences are packed.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, paged_attention)


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    stonechat: PagedContext | ProbeContext | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Maps query [N, H, T, Dk], key [N, Hkv, T, Dk], value [N, Hkv, T, Dv] to [N, T, H, Dv].

    Its rows, N * T, are the packed tokens of the step.
    """
    if stonechat is None:
        raise UnsupportedModelError("this model does not pass keyword arguments to its attention")
    if attention_mask is not None:
        raise UnsupportedModelError("this model passes a mask of its own to its attention")
    spec = AttentionSpec(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
        chunk_size=chunk_size(module),
    )
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    num_rows, length = query.shape[0], query.shape[2]
    query, key, value = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    if scales_by_position(module):
        positions = stonechat.positions(query.shape[0], query.device)
        query = rescaled(query, module, positions, length)
    attended = stonechat.attend(layer, query, key, value, spec)
    return attended.view(num_rows, length, *attended.shape[1:]), None
