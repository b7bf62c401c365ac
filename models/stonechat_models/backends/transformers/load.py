"""Loads a Hugging Face model from its files: fuses, quantises and chooses its attention."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from stonechat_models.backends.quantization.device_support import (
    TRITON_BACKENDS,
    kv_dtype,
    precision_of,
    refuse_kv_format,
)
from stonechat_models.backends.transformers import quantize
from stonechat_models.backends.transformers.attention.backend import AttentionBackend
from stonechat_models.backends.transformers.attention.choose import choose_attention
from stonechat_models.backends.transformers.attention.interface import ProbeContext
from stonechat_models.backends.transformers.attention.row import RowBackend
from stonechat_models.backends.transformers.deterministic import ROWS, make_deterministic
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.packing_check import check_packing
from stonechat_models.checkpoint.cache import Progress, fill_once
from stonechat_models.checkpoint.gguf.reader import read_gguf
from stonechat_models.checkpoint.gguf.weights import write_weights
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.checkpoint.resolve import ModelFiles, weights_hash
from stonechat_models.config import EngineConfig, Precision
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.types import ModelInfo


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
    if model.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not has_own_code:
        raise UnsupportedModelError(
            f"the installed transformers has no causal language model of type {model.model_type}"
        )
    attention: AttentionBackend = RowBackend()
    if not config.deterministic:
        attention = choose_attention(config.attention_backend, device)
    refuse_kv_format(config.kv_cache_dtype, attention.name, device)
    load_dtype, dtype = quantize.dtypes(config, model.dtype, device)
    kv_cache_dtype = kv_dtype(config.kv_cache_dtype, dtype)
    return LoadSettings(attention, precision_of(config), load_dtype, dtype, kv_cache_dtype)


def load_transformers_model(
    files: ModelFiles, config: EngineConfig, device: torch.device, progress: Progress
) -> TransformersModel:
    """Load a model, ready to run.

    Raises `ModelLoadError`, or `UnsupportedModelError` if packing would give wrong logits.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    settings = load_settings(files.config, config, device)
    dtype, load_dtype = settings.dtype, settings.load_dtype
    module = load_module(
        files, config, device, load_dtype, attn_implementation="eager", progress=progress
    )
    num_parameters = sum(p.numel() for p in module.parameters())
    probe, quantization = None, "none"
    if settings.attention.name in TRITON_BACKENDS and config.device_map is None:
        probe = _fuse(module, device, progress)
    if settings.precision is not None:
        has_cpu_layers = device.type == "cpu" or config.device_map is not None
        quantization, probe = quantize.quantize_checked(
            module,
            settings.precision,
            dtype,
            quantize.load_team(config.threads or 1, progress) if has_cpu_layers else None,
            deterministic=config.deterministic,
            probe=probe,
        )
    if config.deterministic:
        make_deterministic(module)
    model = TransformersModel(
        module,
        ModelInfo(
            name=files.name,
            architecture=files.config.architecture,
            vocab_size=_vocab_size(module),
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            quantization=quantization,
            backend="transformers",
            num_parameters=num_parameters,
            weight_bytes=quantize.weight_bytes(module),
            weights_hash=weights_hash(files),
            block_size=config.block_size,
            threads=config.threads or 1,
        ),
        settings.attention,
        row_multiple=ROWS if config.deterministic else 1,
        probe=probe,
        kv_dtype=settings.kv_dtype,
    )
    if device.type == "cuda" and not config.deterministic:
        _choose_checked_attention(model, config, device, progress)
    return model


def load_module(
    files: ModelFiles,
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    attn_implementation: str = "sdpa",
    progress: Progress = lambda line: None,
) -> nn.Module:
    """Load the model's own PyTorch code, unmodified, in eval mode.

    The weights are on `device`, or spread by accelerate if `config.device_map` is set. The first
    load of a GGUF file writes its weights to the cache, dequantised to safetensors of `dtype`.
    Raises `ModelLoadError` if weights are missing or do not fit the module.
    """
    disable_progress_bar()
    folder = files.folder
    if files.gguf is not None:
        folder = _dequantised_folder(files, files.gguf, dtype, progress)
    try:
        with torch.inference_mode(False):
            module, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attn_implementation,
                device_map=config.device_map or {"": device},
                trust_remote_code=config.trust_remote_code,
                use_safetensors=None if config.allow_pickle else True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        raise ModelLoadError(f"cannot load {files.name}: {error}") from error
    _check_report(files.name, report)
    eval_module: nn.Module = module.eval().requires_grad_(False)
    return eval_module


def _check_report(name: str, report: dict[str, object]) -> None:
    """Refuse missing and mismatched weights: they would be random. Extra weights do no harm."""
    for key in ("missing_keys", "mismatched_keys", "error_msgs"):
        names = report.get(key)
        if isinstance(names, list | set | tuple) and names:
            listing = ", ".join(sorted(map(str, names))[:5])
            raise ModelLoadError(f"{name}: {key.replace('_', ' ')}: {listing}")


def _dequantised_folder(
    files: ModelFiles, path: Path, dtype: torch.dtype, progress: Progress
) -> Path:
    """The cache folder with a GGUF file's config and its weights as safetensors of `dtype`."""

    def build(target: Path) -> None:
        progress(f"converting the weights of {path.name} to {name} (once)")
        for source in files.folder.iterdir():
            if source.is_file():
                shutil.copy(source, target / source.name)
        write_weights(read_gguf(path), files.config, target, dtype, progress)

    name = str(dtype).removeprefix("torch.")
    return fill_once(files.folder.with_name(f"{files.folder.name}-{name}"), progress, build)


def _fuse(module: torch.nn.Module, device: torch.device, progress: Progress) -> ProbeContext:
    """Fuse the parts of `module` that can be fused. Returns the probe of the packing check.

    The check runs first, since fused parts run on packed tokens only and replace the model's code.
    """
    from stonechat_models.backends.transformers.fused.replace import fuse_modules

    probe = check_packing(module, device, _vocab_size(module))
    fused = ", ".join(f"{n} {name}" for name, n in sorted(fuse_modules(module).items()))
    progress(f"fused modules: {fused or 'none'}")
    return probe


def _choose_checked_attention(
    model: TransformersModel, config: EngineConfig, device: torch.device, progress: Progress
) -> None:
    """Choose the attention backend again: the kinds of the model's layers are now known."""
    backend = choose_attention(
        config.attention_backend, device, model.attention_parity_check, progress
    )
    refuse_kv_format(config.kv_cache_dtype, backend.name, device)
    model.set_attention(backend)


def _vocab_size(module: torch.nn.Module) -> int:
    return int(module.config.vocab_size)  # type: ignore[union-attr,arg-type]
