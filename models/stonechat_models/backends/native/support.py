"""Which models the native backend serves, and what they take in memory."""

from dataclasses import replace

from stonechat_models.backends.native.bindings import KV_TILE, load_library
from stonechat_models.backends.native.caches import KV_FORMATS, STATE_BYTES, kv_bytes_per_token
from stonechat_models.backends.native.plan.composites import ONLY_GGUF
from stonechat_models.backends.native.plan.spec import ModelSpec, read_spec
from stonechat_models.backends.native.plan.weights import plan_weights
from stonechat_models.backends.native.stores import HeaderStore, refuse_types
from stonechat_models.backends.native.tower_part import tower_bytes
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.headers import Footprint, ModelHeaders
from stonechat_models.checkpoint.packed.folder import read_packing
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.checkpoint.rope_length import for_length
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError


def supports(
    model: ModelFiles | ModelHeaders, config: EngineConfig, progress: Progress = lambda line: None
) -> str | None:
    """Return None if the native backend serves this model, else the reason why not.

    Compiles the library if it is not cached.
    """
    try:
        checked_spec(model, config)
        refuse_types(model, config)
        load_library(progress)
    except ModelLoadError as error:
        return str(error)
    return None


def checked_spec(model: ModelFiles | ModelHeaders, config: EngineConfig) -> ModelSpec:
    """Read what the backend needs to know of a model. Raises `UnsupportedModelError`."""
    _check_settings(model, config)
    spec = read_spec(for_length(model.config, config.max_model_len))
    if spec.recurrence is not None and model.weight_format == "gguf":
        return replace(spec, recurrence=replace(spec.recurrence, interleaved=True))
    return spec


def _check_settings(model: ModelFiles | ModelHeaders, config: EngineConfig) -> None:
    if config.backend == "transformers":
        raise UnsupportedModelError("the settings name the transformers backend")
    if config.device not in ("auto", "cpu"):
        raise UnsupportedModelError(
            f"the native backend runs on the CPU only, not on {config.device}"
        )
    if config.device_map is not None:
        raise UnsupportedModelError("the native backend does not support --device-map")
    if config.block_size % KV_TILE:
        raise UnsupportedModelError(f"the block size {config.block_size} is not a multiple of 16")
    if config.dtype != "auto":
        raise UnsupportedModelError(
            "the native backend keeps weights as stored and supports only dtype auto"
        )
    if config.kv_cache_dtype not in KV_FORMATS:
        raise UnsupportedModelError(
            "the native backend keeps keys and values in bfloat16 or int8, "
            f"not in {config.kv_cache_dtype}"
        )
    if config.quantize == "fp8":
        raise UnsupportedModelError("fp8 weights need a CUDA device")
    if model.weight_format == "gguf" and config.quantize == "none":
        raise UnsupportedModelError(
            "the native backend does not dequantise GGUF weights (--quantize none)"
        )
    if config.lora:
        raise UnsupportedModelError("LoRA adapters with names of their own (--lora) need PyTorch")
    if config.adapter is not None and (
        model.weight_format == "gguf" or read_packing(model).tensors
    ):
        raise UnsupportedModelError("an adapter is merged into floats, not into quantised weights")
    if model.config.model_type in ONLY_GGUF and model.weight_format != "gguf":
        raise UnsupportedModelError("its folders store the matrices of experts transposed")
    if model.weight_format == "pickle":
        raise UnsupportedModelError("its weights are not in safetensors files")


def footprint(headers: ModelHeaders, config: EngineConfig) -> Footprint:
    """Return what the model takes, with its vision tower. `supports` has returned None for it.

    Raises `ModelLoadError` as `NativeModel.load` does, for weights that are missing, surplus,
    misshapen or of a type that cannot be read.
    """
    spec = read_spec(headers.config)
    plan = plan_weights(spec, HeaderStore(headers), config.quantize)
    experts = spec.experts
    share = experts.per_token / experts.count if experts and experts.count else 1.0
    weight_bytes, decode_bytes = plan.num_bytes(load_library(), share)
    weight_bytes += tower_bytes(headers, plan.prefixes)
    state_bytes = spec.state_elements * STATE_BYTES
    kv_bytes = kv_bytes_per_token(spec, KV_FORMATS[config.kv_cache_dtype])
    return Footprint(weight_bytes, decode_bytes, kv_bytes, state_bytes)
