"""Builds an engine from its config: finds the model, chooses how to run it, sizes the KV cache."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from stonechat_models.backends.base import CausalModel
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.generation_config import read_sampling_defaults
from stonechat_models.checkpoint.headers import ModelHeaders
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.checkpoint.known import default_model
from stonechat_models.checkpoint.packed.folder import read_packing
from stonechat_models.checkpoint.rerankers import RerankerFiles, is_reranker
from stonechat_models.checkpoint.resolve import ModelFiles, WeightFormat, resolve_model
from stonechat_models.checkpoint.rope_length import uses_long_factors
from stonechat_models.checkpoint.support import (
    context_length,
    refuse_encoder_decoder,
    refuse_other_heads,
)
from stonechat_models.config import EngineConfig
from stonechat_models.engine.batch_engine import BatchEngine
from stonechat_models.engine.embedding_engine import EmbeddingEngine
from stonechat_models.engine.embeddings import ACTIVATIONS
from stonechat_models.engine.engine import Engine
from stonechat_models.engine.overlapped import OverlappedEngine
from stonechat_models.engine.speculation.speculation import PromptLookup
from stonechat_models.engine.speech_engine import SpeechEngine
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.hardware.device import (
    HostDevice,
    as_torch,
    find_device,
    free_memory,
    usable_cores,
)
from stonechat_models.media.speech import MODEL_TYPES as SPEECH_TYPES
from stonechat_models.model_file import reading
from stonechat_models.model_info import EmbeddingInfo, ModelInfo, ModelUse, RankingInfo
from stonechat_models.runtime.cache_sizes import (
    DEFAULT_NUM_SEQS,
    size_kv_cache,
    size_states,
)
from stonechat_models.runtime.draft import (
    assemble_draft_model,
    load_draft_model,
    refuse_draft_model,
    refuse_state,
)
from stonechat_models.sampling.state import SamplerLike
from stonechat_models.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from stonechat_models.backends.native import NativeModel
    from stonechat_models.runtime.ranks.followers import GiveUp
    from stonechat_models.runtime.ranks.parallel_model import ParallelModel

DEFAULT_BATCH_TOKENS = {"cuda": 8192, "mps": 2048, "cpu": 512}
MAX_WINDOWS = {"cuda": 16, "mps": 4, "cpu": 4}
"""How many windows of speech a step hears."""
EMBEDDER_BATCH_TOKENS = {"cuda": 65_536, "mps": 8192, "cpu": 4096}
"""Tokens of a batch of texts, padding included. A longer text is a batch of its own."""


def build_engine(
    config: EngineConfig, progress: Progress, give_up: "GiveUp | None" = None
) -> tuple[Engine | BatchEngine[Any], Tokenizer]:
    """Load a model and build its engine.

    `give_up` ends this process. It is needed for a model that several devices share.

    Raises `ModelLoadError`, or `UnsupportedModelError` if the model would compute wrong results.
    """
    device = find_device(config.device_name)
    _refuse_settings(config, device)
    config = replace(config, device=str(device), threads=config.threads or usable_cores())
    files = resolve_model(config, progress)
    with reading(files.name):
        use = model_use(files.config, files.weight_format, files.embedder is not None)
        if use != "generation":
            return _build_batch_engine(files, use, config, device, progress)
        refuse_other_heads(files.config)
        refuse_encoder_decoder(files.config)
        read_packing(files)
        max_model_len = context_length(files.config, config.max_model_len)
        if uses_long_factors(files.config, config.max_model_len):
            progress("using the rotary factors for long texts, for short ones too")
        tokenizer = Tokenizer.from_folder(files.folder)
        draft = None
        if config.draft_model is not None:
            draft = load_draft_model(
                config,
                files.name,
                tokenizer,
                lambda files, config: _load_model(files, config, device, progress),
                progress,
            )
        model = _load_model(files, config, device, progress, give_up)
        if draft is not None:
            refuse_state(model.info)
        tokenizer.refuse_missing_rows(model.info.vocab_size)
        model.info = _with_files(model, files, config)
    engine = assemble_engine(
        model,
        config,
        device,
        draft=draft,
        max_model_len=max_model_len,
        eos_token_ids=tokenizer.eos_token_ids,
        progress=progress,
        ranking_head=None if files.reranker is None else files.reranker.head,
    )
    return engine, tokenizer


def _refuse_settings(config: EngineConfig, device: "torch.device | HostDevice") -> None:
    """Refuse settings that no model can have on this device. Raises `ModelLoadError`."""
    if device.type != "cpu" or config.quantize == "fp8":  # a CPU supports all other precisions
        from stonechat_models.backends.quantization.device_support import refuse_weight_format

        refuse_weight_format(config, as_torch(device))
    if config.draft_model is not None:
        refuse_draft_model(config, device.type)
    if config.tensor_parallel > 1:
        from stonechat_models.runtime.ranks.refusals import refuse_settings

        refuse_settings(config, as_torch(device))


def _with_files(model: CausalModel, files: ModelFiles, config: EngineConfig) -> ModelInfo:
    """What is known of a loaded model, with what its files and the settings say beside weights."""
    info, ignored = model.info, tuple[str, ...]()
    if config.generation_config == "model":
        defaults, ignored = read_sampling_defaults(files.folder)
        if default_model.is_cached_file(files.gguf):
            defaults = default_model.SAMPLING
        info = replace(info, sampling_defaults=defaults)
    if config.embeddings or files.embeds_last:
        made = EmbeddingInfo(size=model.hidden_size, pooling="lasttoken", is_normalized=True)
        info = replace(info, embedding=made, generates=not files.embeds_last)
    if files.reranker is not None:
        # Beside a head, a file may lack what makes logits.
        generates = files.reranker.head is None
        info = replace(info, generates=generates, ranking=_ranking(files.reranker, model, config))
    adapter = files.adapter.description if files.adapter is not None else ""
    notes = (*files.notes, *ignored)
    return replace(info, adapter=adapter, file_format=files.weight_format, notes=notes)


def _ranking(reranker: RerankerFiles, model: CausalModel, config: EngineConfig) -> RankingInfo:
    """How a model that generates scores pairs. Raises `UnsupportedModelError` if it cannot."""
    activation = reranker.activation.rpartition(".")[2]
    if activation not in ACTIVATIONS or not reranker.activation.startswith("torch.nn."):
        raise UnsupportedModelError(
            f"the activation {reranker.activation} is not served for a model that generates: only "
            f"{', '.join(ACTIVATIONS)}"
        )
    info, head = model.info, reranker.head
    if config.embeddings:
        raise UnsupportedModelError(f"{info.name} is a reranker: leave out --embeddings")
    if not all(0 <= token_id < info.vocab_size for token_id in reranker.token_ids):
        raise ModelLoadError(f"{info.name}: there are no tokens {list(reranker.token_ids)}")
    if head is not None and head.shape != (model.hidden_size,):
        raise ModelLoadError(f"{info.name}: its head is for {head.size} numbers")
    return RankingInfo(
        activation=activation,
        template=reranker.template,
        prompt=reranker.prompt,
        lower_case=reranker.lower_case,
        token_ids=reranker.token_ids,
        template_options=reranker.template_options,
    )


def model_use(config: HFConfig, weight_format: WeightFormat, has_modules: bool) -> ModelUse:
    """Return what a model does. `has_modules`: its files say how it makes embeddings.

    Raises `UnsupportedModelError` for an encoder with the head of another task.
    """
    if has_modules:
        return "embeddings"
    if config.model_type in SPEECH_TYPES:
        return "transcription"
    generates = config.architecture.endswith(("ForCausalLM", "ForConditionalGeneration"))
    if is_reranker(config):
        return "reranking"
    if weight_format == "gguf" or generates:
        return "generation"
    from stonechat_models.backends.transformers.pooling_models.embedder import is_bare_encoder

    return "embeddings" if is_bare_encoder(config) else "generation"


def _build_batch_engine(
    files: ModelFiles,
    use: ModelUse,
    config: EngineConfig,
    device: "torch.device | HostDevice",
    progress: Progress,
) -> tuple[BatchEngine[Any], Tokenizer]:
    """Load a model that does not generate text, and build its engine."""
    if config.draft_model is not None:
        raise UnsupportedModelError(f"{files.name} is for {use}: nothing is drafted")
    if config.tensor_parallel > 1:
        raise UnsupportedModelError(f"{files.name} is for {use}: it is not split")
    tokenizer = Tokenizer.from_folder(files.folder)
    if use == "transcription":
        return _build_speech_engine(files, config, device, tokenizer, progress), tokenizer
    return _build_embedding_engine(files, config, device, tokenizer, progress), tokenizer


def _build_embedding_engine(
    files: ModelFiles,
    config: EngineConfig,
    device: "torch.device | HostDevice",
    tokenizer: Tokenizer,
    progress: Progress,
) -> EmbeddingEngine:
    from stonechat_models.backends.transformers.pooling_models.embedder import (
        TransformersEmbedder,
        load_embedder,
    )
    from stonechat_models.backends.transformers.pooling_models.reranker import load_reranker

    model: TransformersEmbedder
    if files.reranker is not None:
        model = load_reranker(files, config, as_torch(device), tokenizer, progress)
    else:
        model = load_embedder(files, config, as_torch(device), progress)
    tokenizer.refuse_missing_rows(model.info.vocab_size)
    model.info = replace(
        model.info,
        max_batch_tokens=config.max_batch_tokens or EMBEDDER_BATCH_TOKENS[device.type],
        max_num_seqs=config.max_num_seqs or DEFAULT_NUM_SEQS[device.type],
        file_format=files.weight_format,
        notes=(*files.notes, *model.info.notes),
    )
    return EmbeddingEngine(model)


def _build_speech_engine(
    files: ModelFiles,
    config: EngineConfig,
    device: "torch.device | HostDevice",
    tokenizer: Tokenizer,
    progress: Progress,
) -> SpeechEngine:
    from stonechat_models.backends.transformers.speech.load import load_speech_model

    model = load_speech_model(files, config, as_torch(device), tokenizer, progress)
    max_num_seqs = config.max_num_seqs or MAX_WINDOWS[device.type]
    model.info = replace(
        model.info,
        max_num_seqs=max_num_seqs,
        max_batch_tokens=max_num_seqs * model.info.max_model_len,
        file_format=files.weight_format,
        notes=files.notes,
    )
    return SpeechEngine(model)


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


def native_refusal(
    model: ModelFiles | ModelHeaders, config: EngineConfig, progress: Progress
) -> str | None:
    """Return why the native backend does not serve a model; None if it does.

    Raises `ModelLoadError` with the reason if the settings name that backend.
    """
    from stonechat_models.backends import native

    reason = native.supports(model, config, progress)
    if reason is not None and config.backend == "native":
        raise ModelLoadError(f"the native backend cannot run {model.name}: {reason}")
    return reason


def _load_model(
    files: ModelFiles,
    config: EngineConfig,
    device: "torch.device | HostDevice",
    progress: Progress,
    give_up: "GiveUp | None" = None,
) -> CausalModel:
    """Load the model with the native backend if it supports the model, else with PyTorch."""
    if config.tensor_parallel > 1:
        from stonechat_models.runtime.ranks.parallel_model import load_parallel_model
        from stonechat_models.runtime.ranks.refusals import refuse_model

        refuse_model(files, config.tensor_parallel)
        assert give_up is not None, "ranks are started from an engine process"
        return load_parallel_model(files, config, as_torch(device), progress, give_up)
    reason = native_refusal(files, config, progress)
    if reason is None:
        from stonechat_models.backends import native

        return native.NativeModel.load(files, config, progress)
    if config.backend == "auto" and device.type == "cpu":
        progress(f"running {files.name} through PyTorch: {reason}")
    from stonechat_models.backends.transformers.loading.importing import import_transformers

    import_transformers()
    from stonechat_models.backends.transformers.loading.load import load_transformers_model

    return load_transformers_model(files, config, as_torch(device), progress)
