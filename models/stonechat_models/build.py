"""From an `EngineConfig` to an engine: find the model, choose how to run it, size its KV cache."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from stonechat_models.architecture import context_length, refuse_unserved_layers
from stonechat_models.config import EngineConfig
from stonechat_models.engine import Engine
from stonechat_models.errors import ModelLoadError
from stonechat_models.forward_batch import CausalModel
from stonechat_models.loader import ModelFiles, resolve_model, weights_hash
from stonechat_models.tokenizer import Tokenizer
from stonechat_models.types import ModelInfo

if TYPE_CHECKING:
    import torch

    from stonechat_models.attention.backend import AttentionBackend
    from stonechat_models.transformers_model import TransformersModel

Progress = Callable[[str], None]

DEFAULT_KV_FRACTION = {"cuda": 0.9, "mps": 0.5, "cpu": 0.25}
"""Share of the memory free after loading. A CPU's cache is only touched as it fills."""
MAX_DEFAULT_CPU_KV_BYTES = 4 << 30
DEFAULT_BATCH_TOKENS = {"cuda": 8192, "mps": 2048, "cpu": 512}
DEFAULT_NUM_SEQS = {"cuda": 256, "mps": 64, "cpu": 128}


def build_engine(config: EngineConfig, progress: Progress) -> tuple[Engine, Tokenizer]:
    """Load everything. Raises `ModelLoadError`; `UnsupportedModelError` for what would be wrong."""
    from stonechat_models.device import choose_device, usable_cores
    from stonechat_models.number_formats import refuse_weight_format

    device = choose_device(config.device)
    refuse_weight_format(config, device)
    config = replace(config, threads=config.threads or usable_cores())
    files = resolve_model(config, progress)
    refuse_unserved_layers(files.config)
    max_model_len = context_length(files.config, config.max_model_len)
    tokenizer = Tokenizer.from_folder(files.folder)
    model = _load_model(files, config, device, progress)
    engine = assemble_engine(
        model,
        config,
        device,
        max_model_len=max_model_len,
        eos_token_ids=tokenizer.eos_token_ids,
        progress=progress,
    )
    return engine, tokenizer


def assemble_engine(
    model: CausalModel,
    config: EngineConfig,
    device: "torch.device",
    *,
    max_model_len: int,
    eos_token_ids: frozenset[int],
    progress: Progress,
) -> Engine:
    """An engine over a loaded model: its KV cache sized, its graphs captured.

    Raises `ModelLoadError` with the numbers when memory does not suffice.
    """
    from stonechat_models.number_formats import TRITON_BACKENDS
    from stonechat_models.sampler import Sampler

    max_num_seqs = config.max_num_seqs or DEFAULT_NUM_SEQS[device.type]
    max_batch_tokens = config.max_batch_tokens or DEFAULT_BATCH_TOKENS[device.type]
    sampler = Sampler(model.info.vocab_size, device)
    decodes_in_triton = model.info.attention_backend in TRITON_BACKENDS
    graphs = decodes_in_triton and not (config.eager or config.device_map)
    reserved = 0
    if device.type == "cuda":
        from stonechat_models.cuda import step_memory

        reserved = step_memory(
            model,
            sampler,
            device,
            max_model_len=max_model_len,
            max_batch_tokens=max_batch_tokens,
            max_num_seqs=max_num_seqs,
            block_size=config.block_size,
            graphs=graphs,
        )
    num_blocks = _num_kv_blocks(model, config, device, max_model_len * max_num_seqs, reserved)
    capacity = num_blocks * config.block_size
    if capacity < max_model_len:
        if config.max_model_len is not None:
            raise ModelLoadError(
                f"the KV cache holds {capacity} tokens and the context length is {max_model_len}: "
                "give it more memory, or lower the context length (--max-model-len)"
            )
        max_model_len = capacity
    model.allocate_kv_cache(num_blocks, config.block_size)
    model.info = replace(
        model.info,
        max_model_len=max_model_len,
        max_batch_tokens=max_batch_tokens,
        max_num_seqs=max_num_seqs,
    )
    if graphs:
        from stonechat_models.cuda import with_cuda_graphs

        model = with_cuda_graphs(model, device, progress)
    return Engine(
        model,
        sampler,
        eos_token_ids=eos_token_ids,
        device=device,
        prefix_caching=config.prefix_caching,
        overlap=device.type == "cuda" if config.overlap is None else config.overlap,
        prompt_lookup=config.prompt_lookup,
    )


def _load_model(
    files: ModelFiles, config: EngineConfig, device: "torch.device", progress: Progress
) -> CausalModel:
    """The compiled CPU path where it serves this model, else the model's own PyTorch code."""
    if config.backend != "transformers" and device.type == "cpu":
        from stonechat_models import native

        reason = native.supports(files, config, progress)
        if reason is None:
            return native.NativeModel.load(files, config, progress)
        if config.backend == "native":
            raise ModelLoadError(f"the native backend cannot run {files.name}: {reason}")
        progress(f"running {files.name} through PyTorch: {reason}")
    return _load_transformers_model(files, config, device, progress)


def _load_transformers_model(
    files: ModelFiles, config: EngineConfig, device: "torch.device", progress: Progress
) -> "TransformersModel":
    import torch

    from stonechat_models import quantize
    from stonechat_models.attention.choose import choose_attention
    from stonechat_models.attention.row import RowBackend
    from stonechat_models.deterministic import ROWS, make_deterministic
    from stonechat_models.device import choose_dtype
    from stonechat_models.loader import load_module
    from stonechat_models.number_formats import (
        TRITON_BACKENDS,
        kv_dtype,
        precision_of,
        refuse_kv_format,
    )
    from stonechat_models.transformers_model import TransformersModel

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
    probe = None
    if backend.name in TRITON_BACKENDS and config.device_map is None:
        from stonechat_models.fused.replace import fuse_modules
        from stonechat_models.self_check import self_check

        # What is fused runs on packed tokens only, and no longer as the model's own code.
        probe = self_check(module, device, int(module.config.vocab_size))  # type: ignore[union-attr,arg-type]
        fused = ", ".join(f"{n} {name}" for name, n in sorted(fuse_modules(module).items()))
        progress(f"fused modules: {fused or 'none'}")
    quantization = "none"
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
    info = ModelInfo(
        name=files.name,
        architecture=str((files.config.get("architectures") or ["?"])[0]),  # type: ignore[index]
        vocab_size=int(module.config.vocab_size),  # type: ignore[union-attr,arg-type]
        max_model_len=0,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        quantization=quantization,
        backend="transformers",
        attention_backend="",
        num_parameters=num_parameters,
        weight_bytes=quantize.weight_bytes(module),
        weights_hash=weights_hash(files),
        block_size=config.block_size,
        num_blocks=0,
        kv_bytes_per_token=0,
        max_batch_tokens=0,
        max_num_seqs=0,
        threads=config.threads or 1,
    )
    if config.deterministic:
        make_deterministic(module)
    model = TransformersModel(
        module,
        info,
        backend,
        row_multiple=ROWS if config.deterministic else 1,
        probe=probe,
        kv_dtype=kv_dtype(config.kv_cache_dtype, dtype),
    )
    if device.type == "cuda" and not config.deterministic:
        tried = choose_attention(config.attention_backend, device, model.attention_trial, progress)
        refuse_kv_format(config.kv_cache_dtype, tried.name, device)
        model.set_attention(tried)
    return model


def _num_kv_blocks(
    model: CausalModel,
    config: EngineConfig,
    device: "torch.device",
    useful_tokens: int,
    reserved: int,
) -> int:
    """Blocks that the asked-for memory holds, and no more than all sequences could ever fill.

    `reserved` bytes of what is free are left to the steps.
    """
    from stonechat_models.device import free_memory

    free = max(0, free_memory(device) - reserved)
    if config.kv_cache_bytes is not None:
        budget = config.kv_cache_bytes
    else:
        budget = int(free * (config.kv_cache_fraction or DEFAULT_KV_FRACTION[device.type]))
        if config.kv_cache_fraction is None and device.type == "cpu":
            budget = min(budget, MAX_DEFAULT_CPU_KV_BYTES)
    if budget > free:
        raise ModelLoadError(
            f"a KV cache of {budget / 2**20:.0f} MiB was asked for, and {free / 2**20:.0f} MiB "
            f"are free on {device}"
        )
    tokens = min(budget // model.kv_bytes_per_token, useful_tokens)
    num_blocks = tokens // config.block_size
    if num_blocks < 1:
        raise ModelLoadError(
            f"{budget / 2**20:.1f} MiB hold no block of {config.block_size} tokens at "
            f"{model.kv_bytes_per_token} bytes a token; {free / 2**20:.0f} MiB are free on {device}"
        )
    return int(num_blocks)
