"""Loads and assembles the draft model, or refuses one that cannot draft for the served model."""

from collections.abc import Callable
from dataclasses import replace

from stonechat_models.backends.base import CausalModel
from stonechat_models.checkpoint.packed.folder import read_packing
from stonechat_models.checkpoint.resolve import ModelFiles, resolve_model
from stonechat_models.checkpoint.support import context_length
from stonechat_models.config import EngineConfig
from stonechat_models.engine.batch import place_of
from stonechat_models.engine.speculation.draft_model import DraftModel
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.hardware.device import HostDevice, as_torch
from stonechat_models.model_file import reading
from stonechat_models.model_info import DraftInfo, ModelInfo
from stonechat_models.sampling.state import SamplerLike
from stonechat_models.text.same_vocabulary import vocabulary_difference
from stonechat_models.text.tokenizer import Tokenizer

LoadModel = Callable[[ModelFiles, EngineConfig], CausalModel]


def draft_config(config: EngineConfig) -> EngineConfig:
    """Return the settings that load the draft model: those of the model that is served."""
    assert config.draft_model is not None
    return replace(
        config,
        model=config.draft_model,
        draft_model=None,
        revision=None,
        adapter=None,
        mmproj="none",
        lora=(),
        max_model_len=None,
        embeddings=False,
    )


def refuse_draft_model(config: EngineConfig, device_type: str) -> None:
    """Raise `UnsupportedModelError` if no draft model works with these settings."""
    reason = None
    if device_type != "cpu":
        reason = f"it runs on the CPU only, not on {device_type}"
    elif config.device_map is not None:
        reason = "it does not work with a device map"
    elif config.overlap:
        reason = "it does not work with overlapped steps (--overlap)"
    if reason is not None:
        raise UnsupportedModelError(f"the draft model is refused: {reason}")


def load_draft_model(
    config: EngineConfig,
    served_name: str,
    tokenizer: Tokenizer,
    load: LoadModel,
    progress: Callable[[str], None],
) -> CausalModel:
    """Load the draft model of `config` for the model of this name and tokenizer.

    Raises `ModelLoadError` as for other models, and if its tokens are not those of the model that
    is served. Raises `UnsupportedModelError` if it keeps a recurrent state.
    """
    settings = draft_config(config)
    files = resolve_model(settings, progress)
    with reading(files.name):
        if files.embedder is not None or files.reranker is not None:
            raise UnsupportedModelError(f"{files.name} cannot draft: it does not generate")
        own_tokenizer = Tokenizer.from_folder(files.folder)
        difference = vocabulary_difference(tokenizer, own_tokenizer)
        if difference is not None:
            raise ModelLoadError(
                f"{files.name} cannot draft for {served_name}, its tokens are others: {difference}"
            )
        read_packing(files)
        max_model_len = context_length(files.config, None)
        model = load(files, settings)
        own_tokenizer.refuse_missing_rows(model.info.vocab_size)
    refuse_state(model.info)
    model.info = replace(model.info, max_model_len=max_model_len)
    return model


def assemble_draft_model(
    draft: CausalModel,
    served: CausalModel,
    config: EngineConfig,
    sampler: SamplerLike,
    end_ids: frozenset[int],
) -> DraftModel:
    """Let a loaded model draft for the one that is served, whose KV cache is allocated.

    Both have as many blocks, and `served.info` then says what drafts for it.
    """
    draft.allocate_kv_cache(served.info.num_blocks, config.block_size)
    info = DraftInfo(
        name=draft.info.name,
        architecture=draft.info.architecture,
        num_parameters=draft.info.num_parameters,
        weight_bytes=draft.info.weight_bytes,
        kv_bytes_per_token=draft.info.kv_bytes_per_token,
        num_draft_tokens=config.num_draft_tokens,
    )
    served.info = replace(served.info, draft=info)
    is_on_host = draft.info.backend == "native"
    return DraftModel(
        draft,
        sampler,
        vocab_size=served.info.vocab_size,
        end_ids=end_ids,
        max_tokens=config.num_draft_tokens,
        place=place_of(None if is_on_host else as_torch(HostDevice())),
        takes_tensors=served.info.backend != "native",
    )


def refuse_state(info: ModelInfo) -> None:
    """Raise `UnsupportedModelError` if a model cannot draft, nor be drafted for."""
    if info.keeps_state or not info.exact_chunks:
        raise UnsupportedModelError(
            f"the draft model is refused: {info.name} keeps more of a sequence than keys and "
            "values, and that cannot be taken back to the last accepted token"
        )
