"""Decides from a config whether the paged engine can serve a model, and up to which length."""

from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.errors import UnsupportedModelError

LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
"""RoPE types whose frequencies depend on the longest sequence in a step."""


def refuse_encoder_decoder(config: HFConfig) -> None:
    """Raise `UnsupportedModelError` for a model with an encoder, which is not served."""
    if config.keys.read("is_encoder_decoder", bool, False):
        raise UnsupportedModelError(
            "encoder-decoder models are not served; choose a decoder-only model"
        )


def context_length(config: HFConfig, requested: int | None) -> int:
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


def _correct_length(config: HFConfig) -> int:
    limit = config.max_position_embeddings or 2048
    # Only a mask holds the chunks, and none is built.
    limit = min(limit, config.keys.size("attention_chunk_size", limit))
    key = "original_max_position_embeddings"
    for rope in (config.rope, *config.rope.sections().values()):
        if rope.read("rope_type", str, rope.read("type", str, "")) in LENGTH_DEPENDENT_ROPE:
            limit = min(limit, rope.size(key, config.keys.size(key, limit)))
    return limit
