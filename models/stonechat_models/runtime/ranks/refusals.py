"""Which models and settings several devices can share, before anything is loaded."""

from math import gcd
from typing import TYPE_CHECKING

from stonechat_models.backends.quantization.device_support import precision_of
from stonechat_models.checkpoint.headers import ModelHeaders
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.checkpoint.packed.method import read_method
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.runtime.ranks.split_types import SPLIT_TYPES

if TYPE_CHECKING:
    import torch

FLAG = "--tensor-parallel"
OTHER_HEADS = {
    "num_global_key_value_heads": "key and value heads in its global layers",
    "swa_num_attention_heads": "attention heads in its layers with a window",
    "swa_num_key_value_heads": "key and value heads in its layers with a window",
}
"""Numbers of heads that some layers have, by their keys in config.json."""


def refuse_settings(config: EngineConfig, device: "torch.device") -> None:
    """Raise `ModelLoadError` if devices cannot share a model with these settings."""
    for is_set, flag in (
        (config.backend == "native", "--backend native: the compiled CPU path has one rank"),
        (precision_of(config) is not None, "--quantize"),
        (config.adapter is not None, "--adapter: merge it into the model's files first"),
        (bool(config.lora), "--lora"),
        (config.device_map is not None, "--device-map: both spread the model"),
        (config.draft_model is not None, "--draft-model"),
        (config.deterministic, "--deterministic: sums over ranks have another order"),
        (config.overlap is True, "--overlap: each step's tokens go to the other ranks first"),
        (config.trust_remote_code, "--trust-remote-code: only transformers' own models are split"),
        (config.engine_process is False, "--no-engine-process: ranks are processes"),
    ):
        if is_set:
            raise ModelLoadError(f"{FLAG} does not go with {flag}")
    _refuse_device(config, device)


def _refuse_device(config: EngineConfig, device: "torch.device") -> None:
    import torch

    if device.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"{FLAG} needs CUDA devices, or a CPU; {device} is neither")
    if device.type == "cpu":
        return
    if device.index:
        raise ModelLoadError(
            f"{FLAG} uses the first {config.tensor_parallel} CUDA devices: choose them with "
            "CUDA_VISIBLE_DEVICES in place of --device"
        )
    num_devices = torch.cuda.device_count()
    if num_devices < config.tensor_parallel:
        raise ModelLoadError(
            f"{FLAG} {config.tensor_parallel} needs as many CUDA devices, and there are only "
            f"{num_devices}"
        )


def refuse_model(model: ModelFiles | ModelHeaders, num_ranks: int) -> None:
    """Raise `UnsupportedModelError` if devices cannot share a model.

    `refuse_uneven` looks at the sizes of its weights.
    """
    config = model.config
    if model.weight_format != "safetensors":
        raise UnsupportedModelError(
            f"{FLAG} needs weights in safetensors files: these are {model.weight_format} files"
        )
    method = read_method(config)
    if method.name:
        raise UnsupportedModelError(
            f"{FLAG} needs weights that are not quantised: these have the format {method.label}"
        )
    if config.model_type not in SPLIT_TYPES:
        raise UnsupportedModelError(
            f"{FLAG} does not know models of type {config.model_type}: they may give other logits "
            "when they are split (docs/tensor-parallel.md lists those that do not)"
        )
    _refuse_heads(config, num_ranks)


def refuse_uneven(model: ModelFiles | ModelHeaders, num_ranks: int) -> None:
    """Raise `UnsupportedModelError` if a weight cannot be split in equal parts."""
    from stonechat_models.backends.transformers.loading.split import (
        empty_split_module,
        splits_layers,
        splits_of,
        uneven_weights,
    )

    splits = splits_of(empty_split_module(model.config))
    if not splits_layers(splits):
        raise UnsupportedModelError(
            f"{FLAG}: the installed transformers has no plan to split models of type "
            f"{model.config.model_type}; install a newer one"
        )
    for problem in uneven_weights(splits, num_ranks):
        raise UnsupportedModelError(f"{FLAG} {num_ranks} needs equal parts: {problem}")


def _refuse_heads(config: HFConfig, num_ranks: int) -> None:
    heads = {"attention heads": config.num_heads, "key and value heads": config.num_kv_heads}
    for key, name in OTHER_HEADS.items():
        if number := config.keys.read(key, int, 0):
            heads[name] = number
    for name, number in heads.items():
        if number % num_ranks:
            common = gcd(*heads.values())
            fitting = [str(n) for n in range(2, common + 1) if common % n == 0]
            hint = f": choose {' or '.join(fitting)}" if fitting else ""
            raise UnsupportedModelError(
                f"{FLAG} {num_ranks} needs equal parts, and the model has {number} {name}{hint}"
            )
