"""Serves LoRA adapters beside a loaded model, or says why it cannot."""

from collections.abc import Sequence

import torch

from stonechat_models.backends.transformers.lora.check import check_adapters
from stonechat_models.backends.transformers.lora.install import add_adapters
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.plain import PlainModel
from stonechat_models.checkpoint.adapter.files import Adapter
from stonechat_models.checkpoint.cache import sampled_hash
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.model_info import AdapterInfo


def refuse_lora_settings(config: EngineConfig) -> None:
    """Raise `UnsupportedModelError` if there are adapters, and settings that cannot have them."""
    reasons = {
        "--deterministic": (config.deterministic, "their products sum in no fixed order"),
        "--device-map": (config.device_map is not None, "they lie on one device"),
    }
    for flag, (is_set, reason) in reasons.items():
        if config.lora and is_set:
            raise UnsupportedModelError(f"--lora does not work with {flag}: {reason}")


def serve_adapters(
    model: TransformersModel | PlainModel, adapters: Sequence[Adapter], dtype: torch.dtype
) -> tuple[AdapterInfo, ...]:
    """Compute the adapters beside `model` from now on, in `dtype`. Returns what they are.

    Raises `ModelLoadError` if one cannot be read, and `UnsupportedModelError` if the model cannot
    have them.
    """
    if not isinstance(model, TransformersModel):
        raise UnsupportedModelError(
            "the model runs one sequence at a time, with transformers' own cache, where adapters "
            "have no names (--adapter merges one into the weights)"
        )
    rows, sizes = add_adapters(model.module, adapters, model.device, dtype)
    check_adapters(model, rows, len(adapters))
    model.adapter_rows = rows
    return tuple(
        AdapterInfo(
            name=adapter.name,
            rank=adapter.rank,
            num_weights=len(adapter.layers),
            num_bytes=size,
            weights_hash=sampled_hash([*adapter.files]),
        )
        for adapter, size in zip(adapters, sizes, strict=True)
    )
