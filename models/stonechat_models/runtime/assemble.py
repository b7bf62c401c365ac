"""Assembles the engine of a loaded model: sizes its caches, captures graphs, chooses a sampler."""

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from stonechat_models.backends.base import CausalModel
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.config import EngineConfig
from stonechat_models.engine.engine import Engine
from stonechat_models.engine.overlapped import OverlappedEngine
from stonechat_models.engine.speculation.speculation import PromptLookup
from stonechat_models.hardware.device import HostDevice, as_torch, free_memory
from stonechat_models.runtime.cache_sizes import DEFAULT_NUM_SEQS, size_kv_cache, size_states
from stonechat_models.runtime.draft import assemble_draft_model
from stonechat_models.sampling.state import SamplerLike

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from stonechat_models.backends.native import NativeModel
    from stonechat_models.runtime.ranks.parallel_model import ParallelModel

DEFAULT_BATCH_TOKENS = {"cuda": 8192, "mps": 2048, "cpu": 512}


def assemble_engine(
    model: CausalModel,
    config: EngineConfig,
    device: "torch.device | HostDevice",
    *,
    max_model_len: int,
    eos_token_ids: frozenset[int],
    progress: Progress,
    draft: CausalModel | None = None,
    ranking_head: "npt.NDArray[np.float32] | None" = None,
) -> Engine:
    """Build the engine of a loaded model: size its KV cache and capture its CUDA graphs.

    `draft` is the draft model. Its KV cache has the same blocks. `ranking_head` is that of a
    reranker, if it has one.

    Raises `ModelLoadError` with the numbers if there is not enough memory.
    """
    info = model.info
    max_batch_tokens = config.max_batch_tokens or DEFAULT_BATCH_TOKENS[device.type]
    if not info.exact_chunks:  # a prompt is computed in one piece
        max_batch_tokens = max(max_batch_tokens, max_model_len)
    model.info = replace(
        info,
        block_size=config.block_size,
        max_model_len=max_model_len,
        max_batch_tokens=max_batch_tokens,
        max_num_seqs=config.max_num_seqs or DEFAULT_NUM_SEQS[device.type],
    )
    is_native, is_shared = info.backend == "native", config.tensor_parallel > 1
    sampler = _sampler_of(model, device, progress)
    graphs = not is_native and not why_no_graphs(
        config, info.attention_backend, runs_plainly=info.backend == "plain"
    )
    free = _free_beside_steps(model, sampler, config, device, graphs=graphs)
    num_blocks = _size_caches(model, draft, config, device, free, progress)
    model.allocate_kv_cache(num_blocks, config.block_size)
    if graphs:
        from stonechat_models.backends.transformers.cuda.memory import with_cuda_graphs

        model = with_cuda_graphs(model, as_torch(device), progress)
    draft_model = None
    if draft is not None:
        draft_model = assemble_draft_model(draft, model, config, sampler, eos_token_ids)
    overlap = device.type == "cuda" if config.overlap is None else config.overlap
    overlap = overlap and not is_shared
    engine_class = OverlappedEngine if overlap else Engine
    return engine_class(
        model,
        sampler,
        eos_token_ids=eos_token_ids,
        device=None if is_native else as_torch(HostDevice() if is_shared else device),
        prefix_caching=config.prefix_caching,
        prompt_lookup=choose_prompt_lookup(config, model.info.backend, overlap=overlap),
        draft_model=draft_model,
        media_cache_bytes=config.media_cache_bytes,
        ranking_head=ranking_head,
    )


def _free_beside_steps(
    model: CausalModel,
    sampler: SamplerLike,
    config: EngineConfig,
    device: "torch.device | HostDevice",
    *,
    graphs: bool,
) -> int:
    """Return the bytes that are free on the device, less those that steps need there.

    The limits in `model.info` say how large a step may be. Off CUDA nothing is set aside for it.
    """
    num_bytes, info = 0, model.info
    if device.type == "cuda":
        from stonechat_models.backends.transformers.cuda.memory import step_memory

        num_bytes = step_memory(model, sampler, as_torch(device), graphs=graphs)
        towers = [part.encoding_bytes for part in (info.images, info.audio) if part is not None]
        if towers:
            num_bytes += config.media_cache_bytes + max(towers)
    if config.tensor_parallel > 1:
        return cast("ParallelModel", model).least_free_memory() - num_bytes
    return free_memory(device) - num_bytes


def _size_caches(
    model: CausalModel,
    draft: CausalModel | None,
    config: EngineConfig,
    device: "torch.device | HostDevice",
    free: int,
    progress: Progress,
) -> int:
    """Return how many blocks of KV cache fit in `free` bytes, beside recurrent states.

    Lowers the limits in `model.info` to what fits. Raises `ModelLoadError` with the numbers.
    """
    info, num_state_slots, max_num_seqs = model.info, 0, model.info.max_num_seqs
    if info.keeps_state:
        num_state_slots, max_num_seqs = size_states(
            config,
            device,
            free=free,
            state_bytes=info.state_bytes,
            keeps_snapshots=info.backend != "plain",
        )
        if max_num_seqs < (config.max_num_seqs or 0):
            progress(f"only {max_num_seqs} sequences run at a time: their states take memory")
    num_blocks, max_model_len = size_kv_cache(
        config,
        device,
        free=free,
        state_bytes=num_state_slots * info.state_bytes,
        bytes_per_token=info.kv_bytes_per_token + (draft.info.kv_bytes_per_token if draft else 0),
        max_model_len=info.max_model_len,
    )
    model.info = replace(
        info,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        num_state_slots=num_state_slots,
    )
    return num_blocks


def choose_prompt_lookup(config: EngineConfig, backend: str, *, overlap: bool) -> PromptLookup:
    """Return when tokens are drafted from a sequence's own text.

    By itself that is done only where a row has the same bits for any number of rows, so that what
    is drafted cannot change an answer, and where no overlapped step has to wait for it.
    """
    if config.prompt_lookup is not None:
        return "on" if config.prompt_lookup else "off"
    return "auto" if backend == "native" and not overlap else "off"


def _sampler_of(
    model: CausalModel, device: "torch.device | HostDevice", progress: Progress
) -> SamplerLike:
    if model.info.backend == "native":
        return cast("NativeModel", model).new_sampler()
    import torch

    from stonechat_models.sampling.choose import choose_sampler

    return choose_sampler(
        model.info.vocab_size,
        as_torch(device),
        _why_no_triton,
        progress,
        getattr(torch, model.info.dtype),
    )


def _why_no_triton(device: "torch.device") -> str | None:
    from stonechat_models.backends.transformers.attention.choose import why_no_triton

    return why_no_triton(device)


def why_no_graphs(config: EngineConfig, attention: str, *, runs_plainly: bool) -> str | None:
    """Why steps run without CUDA graphs, or None. `attention`: the name of the backend."""
    if config.eager:
        return "the settings say so"
    if runs_plainly:
        return "the model runs one sequence at a time, with a cache of its own"
    if config.device_map is not None:
        return "a device map spreads the model"
    if config.tensor_parallel > 1:
        return "several devices share the model"
    return None if attention == "triton" else f"{attention} attention cannot be captured"
