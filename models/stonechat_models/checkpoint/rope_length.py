"""Rotary embeddings whose frequencies depend on the length of the text.

LongRoPE (arXiv 2402.13753) has two sets of factors: for texts up to the original length, and for
longer ones. Keys stay in the cache while a text grows, so one set must serve all its positions. It
is the long set if a context length above the original one is asked for, else the short set.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stonechat_models.checkpoint.hf_config import HFConfig, JsonObject

DEFAULT_LENGTH = 2048
"""The context length of a model whose file names none, in tokens."""
ORIGINAL_LENGTH = "original_max_position_embeddings"
PHI3 = frozenset({"phi3", "phi4_multimodal"})
PHI3_LENGTH = 4096
"""The original length of these types if the file names none."""


def rope_type(config: HFConfig, rope: JsonObject) -> str:
    """Return the type of a rotary embedding.

    Early files of Phi-3 have other names for longrope. `mrope` has the default frequencies.
    """
    name = rope.read("rope_type", str, rope.read("type", str, "default"))
    if name == "su" or (name == "yarn" and config.model_type in PHI3):
        return "longrope"
    return "default" if name == "mrope" else name


def original_length(config: HFConfig, rope: JsonObject) -> int:
    """Return the length in tokens from which on the frequencies change."""
    default = config.max_position_embeddings or DEFAULT_LENGTH
    if config.model_type in PHI3:
        default = PHI3_LENGTH
    return config.keys.size(ORIGINAL_LENGTH, rope.size(ORIGINAL_LENGTH, default))


def rope_sections(config: HFConfig) -> tuple[JsonObject, ...]:
    """Return the rotary parameters: one object, and one for each type of layer, if there are."""
    return (config.rope, *config.rope.sections().values())


def uses_long_factors(config: HFConfig, requested: int | None) -> bool:
    """Whether a requested context length, in tokens, needs the long factors of LongRoPE."""
    return requested is not None and any(
        rope_type(config, rope) == "longrope" and requested > original_length(config, rope)
        for rope in rope_sections(config)
    )


def long_factors(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary parameters with the long factors in place of the short ones."""
    changed = {k: long_factors(v) if isinstance(v, Mapping) else v for k, v in rope.items()}
    for long, short in (("long_factor", "short_factor"), ("long_mscale", "short_mscale")):
        if long in rope:
            changed[short] = rope[long]
    return changed


def for_length(config: HFConfig, requested: int | None) -> HFConfig:
    """Return the config whose short factors are those that serve the requested length."""
    if not uses_long_factors(config, requested):
        return config
    return replace(config, rope=replace(config.rope, values=long_factors(config.rope.values)))
