"""Tiny random models of every type that transformers has, built from each type's config class."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from stonechat_models.backends.transformers.kinds import auto_class
from stonechat_models.backends.transformers.newer_types import version_hint
from stonechat_models.checkpoint.hf_config import HFConfig, parse_config
from tests.models.every_family_settings import OVERRIDES, SET_IF_NULL, SIZES

CAUSAL_TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
IMAGE_TEXT_TYPES = tuple(
    t for t in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if t not in CAUSAL_TYPES
)
TYPES = CAUSAL_TYPES + IMAGE_TEXT_TYPES
TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tiny_config(model_type: str) -> PretrainedConfig:
    """Return the config of a model with one layer or more of each kind, in all of its parts."""
    skip_without(model_type)
    return CONFIG_MAPPING[model_type](**_settings(CONFIG_MAPPING[model_type]()))


def skip_without(model_type: str) -> None:
    """Skip the test if the installed transformers is too old for a type."""
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"the installed transformers has no {model_type}{version_hint(model_type)}")


def hf_config(model_type: str) -> HFConfig:
    """Return the tiny config as a folder has it."""
    return parse_config(tiny_config(model_type).to_dict(), model_type)


def tiny_model(model_type: str, seed: int = 0) -> torch.nn.Module:
    """Return a float32 model in eval mode. Its large weights make the greedy output varied.

    Raises `UnsupportedModelError` for a type that is not served.
    """
    torch.manual_seed(seed)
    config = tiny_config(model_type)
    model_class = auto_class(parse_config(config.to_dict(), model_type))
    model = model_class.from_config(config, attn_implementation="eager").eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.endswith("A_log"):
                parameter.normal_(0.0, 0.3 if "embed" in name or "wte" in name else 0.2)
    return model


def _settings(default: PretrainedConfig) -> dict[str, Any]:
    """The settings of a tiny config, from one with the defaults of the same class."""
    own = default.to_dict()
    settings: dict[str, Any] = {
        name: size for name, size in SIZES.items() if _is_size(name, own.get(name, 0))
    }
    if "qk_rope_head_dim" in settings:  # multi-head latent attention
        settings |= {key: 8 for key in ("head_dim",) if key in settings}
        settings |= {key: 4 for key in ("num_key_value_heads",) if key in settings}
    for key in ("layer_types", "layers_block_type"):
        if own.get(key):
            settings[key] = _one_of_each(own[key])
            settings["num_hidden_layers"] = len(settings[key])
    num_layers = settings.get("num_hidden_layers", 2)
    if own.get("mlp_layer_types"):
        kinds = list(dict.fromkeys(own["mlp_layer_types"]))
        settings["mlp_layer_types"] = (kinds * num_layers)[:num_layers]
    settings |= TOKEN_IDS
    for part in type(default).sub_configs:
        config = getattr(default, part, None)
        if isinstance(config, PretrainedConfig):
            settings[part] = {"model_type": config.model_type, **_settings(config)}
    for key, value in OVERRIDES.get(default.model_type, {}).items():
        part_settings = settings.get(key)
        settings[key] = {**part_settings, **value} if isinstance(part_settings, dict) else value
    return settings


def _is_size(name: str, value: object) -> bool:
    if value is None:
        return name in SET_IF_NULL
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _one_of_each(kinds: list[str]) -> list[str]:
    """One layer of each kind in their order, and three or more in all."""
    names = list(dict.fromkeys(kinds))
    return names if len(names) > 2 else [*names, names[0]]
