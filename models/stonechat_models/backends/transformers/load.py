"""A Hugging Face model from its files, ready to run: fused, quantised, its attention chosen."""

from collections.abc import Callable

import torch

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
from stonechat_models.backends.transformers.packing_check import self_check
from stonechat_models.checkpoint.resolve import ModelFiles, load_module, weights_hash
from stonechat_models.config import EngineConfig
from stonechat_models.hardware.device import choose_dtype
from stonechat_models.types import ModelInfo

Progress = Callable[[str], None]


def load_transformers_model(
    files: ModelFiles, config: EngineConfig, device: torch.device, progress: Progress
) -> TransformersModel:
    """Raises `ModelLoadError`; `UnsupportedModelError` for what packing would make wrong."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    backend: AttentionBackend = RowBackend()
    if not config.deterministic:
        backend = choose_attention(config.attention_backend, device)
    refuse_kv_format(config.kv_cache_dtype, backend.name, device)
    precision = precision_of(config)
    load_dtype = dtype = choose_dtype(config.dtype, files.config, device)
    if precision is not None:
        load_dtype, dtype = quantize.dtypes(config, files.config, device)
    module = load_module(
        files, config, device, load_dtype, attn_implementation="eager", progress=progress
    )
    num_parameters = sum(p.numel() for p in module.parameters())
    probe, quantization = None, "none"
    if backend.name in TRITON_BACKENDS and config.device_map is None:
        probe = _fuse(module, device, progress)
    if precision is not None:
        has_cpu_layers = device.type == "cpu" or config.device_map is not None
        quantization, probe = quantize.check_and_quantize(
            module,
            precision,
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
            architecture=str((files.config.get("architectures") or ["?"])[0]),  # type: ignore[index]
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
        backend,
        row_multiple=ROWS if config.deterministic else 1,
        probe=probe,
        kv_dtype=kv_dtype(config.kv_cache_dtype, dtype),
    )
    if device.type == "cuda" and not config.deterministic:
        _try_attention(model, config, device, progress)
    return model


def _fuse(module: torch.nn.Module, device: torch.device, progress: Progress) -> ProbeContext:
    """Fuse what can be; returns what the check before it found.

    What is fused runs on packed tokens only, and no longer as the model's own code.
    """
    from stonechat_models.backends.transformers.fused.replace import fuse_modules

    probe = self_check(module, device, _vocab_size(module))
    fused = ", ".join(f"{n} {name}" for name, n in sorted(fuse_modules(module).items()))
    progress(f"fused modules: {fused or 'none'}")
    return probe


def _try_attention(
    model: TransformersModel, config: EngineConfig, device: torch.device, progress: Progress
) -> None:
    """Choose again, now that the kinds of attention of the model's layers are known."""
    tried = choose_attention(config.attention_backend, device, model.attention_trial, progress)
    refuse_kv_format(config.kv_cache_dtype, tried.name, device)
    model.set_attention(tried)


def _vocab_size(module: torch.nn.Module) -> int:
    return int(module.config.vocab_size)  # type: ignore[union-attr,arg-type]
