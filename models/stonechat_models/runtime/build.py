"""Builds an engine from its config: finds the model, chooses how to run it, and loads it."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
from stonechat_models.engine.speech_engine import SpeechEngine
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.hardware.device import HostDevice, as_torch, find_device, usable_cores
from stonechat_models.media.speech import MODEL_TYPES as SPEECH_TYPES
from stonechat_models.model_file import reading
from stonechat_models.model_info import EmbeddingInfo, ModelInfo, ModelUse, RankingInfo
from stonechat_models.runtime.assemble import assemble_engine
from stonechat_models.runtime.cache_sizes import DEFAULT_NUM_SEQS
from stonechat_models.runtime.draft import load_draft_model, refuse_draft_model, refuse_state
from stonechat_models.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from stonechat_models.runtime.ranks.followers import GiveUp

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
