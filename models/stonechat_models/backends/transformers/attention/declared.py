"""What a layer's configuration says of its attention, but its call does not: Llama 4's layers.

Their chunks are only in the model's mask, and none is built here. Their queries are scaled by
position, which they take to be the row in the step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CHUNKED = "chunked_attention"
SHORT = 3
"""The size in tokens of chunks and of the steps of the scale while a model is checked."""


def chunk_size(module: torch.nn.Module) -> int | None:
    """Return the chunk size of an attention layer; None if it has no chunks."""
    config: Any = getattr(module, "config", None)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if CHUNKED not in (getattr(config, "layer_types", None) or ())[layer : layer + 1]:
        return None
    size: int | None = config.attention_chunk_size
    return size


def scales_by_position(module: torch.nn.Module) -> bool:
    """Whether an attention layer scales its queries by position."""
    return bool(getattr(module, "attn_temperature_tuning", False)) and not module.use_rope


def rescaled(
    query: torch.Tensor, module: torch.nn.Module, positions: torch.Tensor, length: int
) -> torch.Tensor:
    """Scale queries [T, H, D] by their `positions` int64[T].

    The layer has scaled them by their places in rows of `length` tokens. That is undone.
    """
    places = torch.arange(len(query), device=query.device) % length
    ratio = _scale(module, positions) / _scale(module, places)
    return (query * ratio[:, None, None]).to(query.dtype)


def _scale(module: Any, positions: torch.Tensor) -> torch.Tensor:
    """The scale of queries at `positions` (arXiv 2501.19399)."""
    steps = torch.floor((positions.float() + 1.0) / module.floor_scale)
    return 1.0 + torch.log1p(steps) * float(module.attn_scale)


def has_chunks(module: torch.nn.Module) -> bool:
    """Whether the configuration of any part of a model names chunked attention."""
    return bool(_chunked_configs(module))


@contextmanager
def short_chunks(module: torch.nn.Module) -> Iterator[None]:
    """Make chunks, and the steps of the scale, so short that a short text shows them."""
    configs = _chunked_configs(module)
    owners = [*configs, *module.modules()] if configs else []
    names = ("attention_chunk_size", "floor_scale")
    changes = [(owner, name) for owner in owners for name in names if hasattr(owner, name)]
    sizes = [getattr(owner, name) for owner, name in changes]
    try:
        for owner, name in changes:
            setattr(owner, name, SHORT)
        yield
    finally:
        for (owner, name), size in zip(changes, sizes, strict=True):
            setattr(owner, name, size)


def _chunked_configs(module: torch.nn.Module) -> list[Any]:
    configs = {id(part.config): part.config for part in module.modules() if hasattr(part, "config")}
    return [c for c in configs.values() if CHUNKED in (getattr(c, "layer_types", None) or ())]
