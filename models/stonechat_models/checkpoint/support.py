"""Decides from a config whether the paged engine can serve a model, and up to which length."""

from typing import Any

from stonechat_models.errors import UnsupportedModelError

SERVED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
"""RoPE types whose frequencies depend on the longest sequence in a step."""


def refuse_unserved_layers(config: dict[str, Any]) -> None:
    """Raise `UnsupportedModelError` for a model that the paged engine cannot serve.

    These are models with layers whose state is not keys and values, and encoder-decoder models.
    """
    unserved = set(config.get("layer_types") or ()) - SERVED_LAYER_TYPES
    if unserved:
        raise UnsupportedModelError(
            f"the paged KV cache cannot hold the state of {', '.join(sorted(unserved))} layers; "
            "choose a model with attention layers only"
        )
    if config.get("is_encoder_decoder"):
        raise UnsupportedModelError(
            "encoder-decoder models are not served; choose a decoder-only model"
        )


def context_length(config: dict[str, Any], requested: int | None) -> int:
    """Return the length in tokens up to which the model is served correctly, or `requested`.

    Raises `UnsupportedModelError` when `requested` is above that length.
    """
    limit = _correct_length(config)
    if requested is None:
        return limit
    if requested > limit:
        raise UnsupportedModelError(
            f"a context length of {requested} tokens exceeds this model's limit of {limit}"
        )
    return requested


def _correct_length(config: dict[str, Any]) -> int:
    limits = [int(config[k]) for k in ("max_position_embeddings", "n_positions") if config.get(k)]
    limit = limits[0] if limits else 2048
    if config.get("attention_chunk_size"):  # only a mask holds the chunks, and none is built
        limit = min(limit, int(config["attention_chunk_size"]))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for parameters in (rope, *(v for v in rope.values() if isinstance(v, dict))):
        if parameters.get("rope_type", parameters.get("type")) in LENGTH_DEPENDENT_ROPE:
            original = parameters.get("original_max_position_embeddings") or config.get(
                "original_max_position_embeddings"
            )
            limit = min(limit, int(original or limit))
    return limit
