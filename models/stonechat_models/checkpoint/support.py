"""What a model's config says about whether, and how far, the paged engine can serve it."""

from typing import Any

from stonechat_models.errors import UnsupportedModelError

SERVED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
"""Rotary types whose frequencies change with the longest sequence at hand."""


def refuse_unserved_layers(config: dict[str, Any]) -> None:
    """Raise `UnsupportedModelError` for layers whose state is not keys and values."""
    unserved = set(config.get("layer_types") or ()) - SERVED_LAYER_TYPES
    if unserved:
        raise UnsupportedModelError(
            f"layers of type {', '.join(sorted(unserved))} keep a state that the paged KV cache "
            "does not hold"
        )
    if config.get("is_encoder_decoder"):
        raise UnsupportedModelError("encoder-decoder models are not served")


def context_length(config: dict[str, Any], requested: int | None) -> int:
    """The longest sequence served right, in tokens; `requested` may lower it.

    Raises `UnsupportedModelError` when more is requested than can be served.
    """
    limit = _right_limit(config)
    if requested is None:
        return limit
    if requested > limit:
        raise UnsupportedModelError(
            f"a context length of {requested} was asked for, and this model is right up to {limit}"
        )
    return requested


def _right_limit(config: dict[str, Any]) -> int:
    limits = [int(config[k]) for k in ("max_position_embeddings", "n_positions") if config.get(k)]
    limit = limits[0] if limits else 2048
    if config.get("attention_chunk_size"):  # chunks are only expressed in a mask, which is lost
        limit = min(limit, int(config["attention_chunk_size"]))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for parameters in (rope, *(v for v in rope.values() if isinstance(v, dict))):
        if parameters.get("rope_type", parameters.get("type")) in LENGTH_DEPENDENT_ROPE:
            original = parameters.get("original_max_position_embeddings") or config.get(
                "original_max_position_embeddings"
            )
            limit = min(limit, int(original or limit))
    return limit
