"""Makes a Hugging Face model ready to run: checks, fuses and quantises it, chooses attention."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from stonechat_models.backends.quantization.device_support import (
    kv_dtype,
    precision_of,
    refuse_kv_format,
)
from stonechat_models.backends.transformers.attention.backend import AttentionBackend
from stonechat_models.backends.transformers.attention.choose import choose_attention
from stonechat_models.backends.transformers.attention.interface import ProbeContext
from stonechat_models.backends.transformers.attention.row import RowBackend
from stonechat_models.backends.transformers.kinds import (
    auto_class,
    plain_model,
    refuse_deterministic,
    stateful_model,
    vocab_size,
)
from stonechat_models.backends.transformers.loading import quantize
from stonechat_models.backends.transformers.loading.deterministic import ROWS, make_deterministic
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.backends.transformers.lora.serve import refuse_lora_settings, serve_adapters
from stonechat_models.backends.transformers.media_checks.audio import (
    audio_case,
    audio_processor,
    with_audio,
)
from stonechat_models.backends.transformers.media_checks.images import image_case, with_images
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.packing_check import check_packing
from stonechat_models.backends.transformers.plain import PlainModel
from stonechat_models.backends.transformers.recurrent import keeps_recurrent_state
from stonechat_models.backends.transformers.stored.choice import can_keep_codes
from stonechat_models.backends.transformers.stored.code_compile import compile_products
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.checkpoint.packed.method import read_method
from stonechat_models.checkpoint.resolve import ModelFiles, weights_hash
from stonechat_models.checkpoint.support import context_length
from stonechat_models.config import EngineConfig, Precision
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.hardware.device import as_current_device
from stonechat_models.media.video.support import with_videos
from stonechat_models.model_info import ModelInfo


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How a model is loaded, as far as its config and the settings decide it."""

    attention: AttentionBackend
    precision: Precision | None
    load_dtype: torch.dtype
    """The dtype in which weights are read, before they are quantised."""
    dtype: torch.dtype
    """The dtype of activations and of weights that are not quantised."""
    kv_dtype: torch.dtype


def load_settings(model: HFConfig, config: EngineConfig, device: torch.device) -> LoadSettings:
    """Decide how to load a model. Raises `ModelLoadError` for settings that it cannot have."""
    has_own_code = config.trust_remote_code and "auto_map" in model.raw
    auto_class(model, has_own_code)
    method = read_method(model)
    if method.is_kept_by_package and (precision_of(config) or config.adapter or config.lora):
        raise UnsupportedModelError(
            f"its weights are in the format {method.label}, which is served as it is: leave out "
            "--quantize, --adapter and --lora"
        )
    if method.name and method.is_read_here and has_own_code:
        raise UnsupportedModelError(
            f"its weights are in the {method.label} format, which is not read for models with code "
            "of their own"
        )
    refuse_lora_settings(config)
    attention: AttentionBackend = RowBackend()
    if not config.deterministic:
        attention = choose_attention(config.attention_backend, device)
    refuse_kv_format(config.kv_cache_dtype, attention.name, device)
    load_dtype, dtype = quantize.dtypes(config, model.dtype, device)
    kv_cache_dtype = kv_dtype(config.kv_cache_dtype, dtype)
    return LoadSettings(attention, precision_of(config), load_dtype, dtype, kv_cache_dtype)


def load_transformers_model(
    files: ModelFiles, config: EngineConfig, device: torch.device, progress: Progress
) -> TransformersModel | PlainModel:
    """Load a model, ready to run.

    Raises `ModelLoadError`, or `UnsupportedModelError` if it would compute wrong logits.
    """
    with as_current_device(device):
        return _load(files, config, device, progress)


def _load(
    files: ModelFiles, config: EngineConfig, device: torch.device, progress: Progress
) -> TransformersModel | PlainModel:
    progress(f"loading {files.name} on {device}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    settings = load_settings(files.config, config, device)
    dtype, load_dtype = settings.dtype, settings.load_dtype
    module = load_module(
        files,
        config,
        device,
        load_dtype,
        attn_implementation="eager",
        keeps_codes=can_keep_codes(files, config, device),
        progress=progress,
    )
    info = replace(
        new_info(files, config, device, module, dtype),
        num_parameters=quantize.num_weights(module),
        num_ranks=config.tensor_parallel,
    )
    images = image_case(module, config.tensor_parallel)
    processor = audio_processor(module, files)
    audio = audio_case(module, processor, config.tensor_parallel)
    model = _checked_model(module, info, settings, config, device, progress)
    model.info = with_images(model, images, files)
    model.info = with_audio(model, audio, processor)
    model.info = with_videos(model.info, files.config)
    quantization = quantize.stored_label(module)
    if settings.precision is not None:
        has_cpu_layers = device.type == "cpu" or config.device_map is not None
        quantization, _ = quantize.quantize_checked(
            module,
            settings.precision,
            dtype,
            quantize.load_team(config.threads or 1, progress) if has_cpu_layers else None,
            deterministic=config.deterministic,
            probe=model.probe,
        )
    if config.deterministic:
        make_deterministic(module)
    if files.adapters:
        model.info = replace(model.info, adapters=serve_adapters(model, files.adapters, dtype))
    model.info = replace(
        model.info, quantization=quantization, weight_bytes=quantize.weight_bytes(module)
    )
    if device.type == "cuda" and not config.deterministic and isinstance(model, TransformersModel):
        _choose_checked_attention(model, config, device, progress)
        if _may_fuse(settings, config):
            _prepare_steps(module, context_length(files.config, config.max_model_len), progress)
            _choose_tiles(model, progress)
    return model


def new_info(
    files: ModelFiles,
    config: EngineConfig,
    device: torch.device,
    module: nn.Module,
    dtype: torch.dtype,
) -> ModelInfo:
    """What is known of a module that has just been loaded, without the sizes of its weights."""
    return ModelInfo(
        name=files.name,
        architecture=files.config.architecture,
        vocab_size=vocab_size(module),
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        quantization="none",
        backend="transformers",
        num_parameters=0,
        weight_bytes=0,
        weights_hash=weights_hash(files),
        block_size=config.block_size,
        threads=config.threads or 1,
    )


def _checked_model(
    module: nn.Module,
    info: ModelInfo,
    settings: LoadSettings,
    config: EngineConfig,
    device: torch.device,
    progress: Progress,
) -> TransformersModel | PlainModel:
    """Choose how to run the float module, and check that its logits are right in that way.

    The paged cache is first, with recurrent states beside it if the model keeps any. What it cannot
    serve runs with transformers' own cache. Raises `UnsupportedModelError` with the reason.
    """
    try:
        fuses_recurrent = keeps_recurrent_state(module) and _may_fuse(settings, config)
        if fuses_recurrent:
            _fuse_parts(module, progress)
        recurrent = stateful_model(module, info, settings.attention, settings.kv_dtype)
        if recurrent is None:
            probe = None
            if _may_fuse(settings, config):
                probe = _fuse(module, device, progress)
            row_multiple = ROWS if config.deterministic else 1
            return TransformersModel(
                module, info, settings.attention, row_multiple, probe, settings.kv_dtype
            )
    except UnsupportedModelError as error:
        if config.tensor_parallel > 1:
            raise
        refuse_deterministic(config)
        return plain_model(module, info, error, progress)
    refuse_deterministic(config)
    if fuses_recurrent:
        _fuse_hybrid_attention(module, progress)
    return recurrent


def _may_fuse(settings: LoadSettings, config: EngineConfig) -> bool:
    """Whether fused parts may take the place of the model's own. They need whole weights."""
    is_whole = config.device_map is None and config.tensor_parallel == 1
    return is_whole and settings.attention.name == "triton"


def _fuse(module: torch.nn.Module, device: torch.device, progress: Progress) -> ProbeContext:
    """Fuse the parts of `module` that can be fused. Returns the probe of the packing check.

    The check runs first, since fused parts run on packed tokens only and replace the model's code.
    """
    probe = check_packing(module, device, vocab_size(module))
    _fuse_parts(module, progress)
    return probe


def _fuse_parts(module: torch.nn.Module, progress: Progress) -> None:
    from stonechat_models.backends.transformers.fused.replace import fuse_modules

    fused = ", ".join(f"{n} {name}" for name, n in sorted(fuse_modules(module).items()))
    progress(f"fused modules: {fused or 'none'}")


def _fuse_hybrid_attention(module: torch.nn.Module, progress: Progress) -> None:
    from stonechat_models.backends.transformers.fused.replace import fuse_hybrid_attention

    for name, n in fuse_hybrid_attention(module).items():
        progress(f"fused modules: {n} {name} beside recurrent layers")


def _prepare_steps(module: nn.Module, max_model_len: int, progress: Progress) -> None:
    """Compute what is the same in every step, and compile and choose kernels of decode steps."""
    from stonechat_models.backends.transformers.fused.coded_choice import choose_coded_products
    from stonechat_models.backends.transformers.fused.product_choice import choose_products
    from stonechat_models.backends.transformers.fused.rotary_table import tabulate_rotary

    tabulate_rotary(module, max_model_len)
    compile_products(module.modules())
    choose_products(module, progress)
    choose_coded_products(module, progress)


def _choose_tiles(model: TransformersModel, progress: Progress) -> None:
    """Let attention decode with the tiles that are the fastest here."""
    from stonechat_models.backends.transformers.attention.tile_choice import choose_decode_tiles

    choose_decode_tiles(model.backend, model.attention_parity_check, progress)


def _choose_checked_attention(
    model: TransformersModel, config: EngineConfig, device: torch.device, progress: Progress
) -> None:
    """Choose the attention backend again: the kinds of the model's layers are now known."""
    backend = choose_attention(
        config.attention_backend, device, model.attention_parity_check, progress
    )
    refuse_kv_format(config.kv_cache_dtype, backend.name, device)
    model.set_attention(backend)
