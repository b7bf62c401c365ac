"""Decides from a config whether the paged engine can serve a model, and up to which length."""

from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.checkpoint.rerankers import CLASSIFIER, num_labels
from stonechat_models.checkpoint.rope_length import (
    DEFAULT_LENGTH,
    original_length,
    rope_sections,
    rope_type,
)
from stonechat_models.errors import UnsupportedModelError

OTHER_HEADS = (
    *("Classification", "QuestionAnswering", "MultipleChoice", "NextSentencePrediction"),
    "RewardModel",
)
"""Parts of the names of classes whose head is for another task."""


def refuse_other_heads(config: HFConfig) -> None:
    """Raise `UnsupportedModelError` for a classifier with several labels, and the like.

    If it is a decoder whose embedding is tied, it could complete text, and nonsense.
    """
    if config.architecture.endswith(CLASSIFIER):
        raise UnsupportedModelError(
            f"{config.architecture} is a classifier with {num_labels(config)} labels; of "
            "classifiers, only rerankers are served, which have one label"
        )
    if any(name in config.architecture for name in OTHER_HEADS):
        raise UnsupportedModelError(
            f"{config.architecture} neither completes texts nor makes embeddings; choose a "
            "decoder-only model or an embedding model"
        )


def refuse_encoder_decoder(config: HFConfig) -> None:
    """Raise `UnsupportedModelError` for a model with an encoder, which is not served."""
    if config.keys.read("is_encoder_decoder", bool, False):
        raise UnsupportedModelError(
            "encoder-decoder models are not served; choose a decoder-only model"
        )


def context_length(config: HFConfig, requested: int | None) -> int:
    """Return `requested`, or the default: the longest context that is served at full quality.

    With LongRoPE, lengths above the original one are served if they are requested. Raises
    `UnsupportedModelError` when `requested` is above the length that is served correctly.
    """
    limit = _limit(config, "dynamic")
    if requested is None:
        return min(limit, _limit(config, "longrope"))
    if requested > limit:
        raise UnsupportedModelError(
            f"a context length of {requested} tokens exceeds this model's limit of {limit}: "
            "lower --max-model-len"
        )
    return requested


def _limit(config: HFConfig, kind: str) -> int:
    """The model's length, or the original length if its rotary embedding is of this kind."""
    limit = config.max_position_embeddings or DEFAULT_LENGTH
    for rope in rope_sections(config):
        if rope_type(config, rope) == kind:
            limit = min(limit, original_length(config, rope))
    return limit
