"""The configuration that makes a module of transformers use LongRoPE's long factors everywhere."""

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.checkpoint.rope_length import long_factors, uses_long_factors
from stonechat_models.config import EngineConfig


def long_config(folder: Path, model: HFConfig, config: EngineConfig) -> PretrainedConfig | None:
    """Return the configuration in `folder` with the long factors; None if they are not needed.

    A module chooses between two sets by the longest position in each call. Both are the same here.
    """
    if not uses_long_factors(model, config.max_model_len):
        return None
    changed: PretrainedConfig = AutoConfig.from_pretrained(
        folder, trust_remote_code=config.trust_remote_code, local_files_only=True, dtype=None
    )
    text = changed.get_text_config()
    text.rope_parameters = long_factors(text.rope_parameters)  # `rope_scaling` is the same object
    return changed
