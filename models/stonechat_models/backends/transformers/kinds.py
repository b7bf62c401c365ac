"""Which of transformers' classes loads a model, and which of ours runs it."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from stonechat_models.backends.transformers.attention.backend import AttentionBackend
from stonechat_models.backends.transformers.newer_types import version_hint
from stonechat_models.backends.transformers.plain import PlainModel
from stonechat_models.backends.transformers.recurrent import RecurrentModel, keeps_recurrent_state
from stonechat_models.backends.transformers.slot_states import SlotMixer
from stonechat_models.backends.transformers.step_check import check_steps
from stonechat_models.backends.transformers.verify import logits_tolerance
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.model_file import reason_of
from stonechat_models.model_info import ModelInfo

logger = logging.getLogger(__name__)

HEARING = {
    **dict.fromkeys(("audioflamingo3", "musicflamingo"), AutoModelForSeq2SeqLM),
    **dict.fromkeys(("glmasr", "qwen2_audio", "qwen3_asr", "voxtral"), AutoModelForMultimodalLM),
}
"""Types of decoders that hear, and transformers' name for their kind. It counts some of them among
the models with an encoder and a decoder."""
ENCODERS = {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation", "cpmant", "xlnet"}
ENCODER_DECODERS = {
    *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    *MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    *("florence2", "pix2struct", "pp_formulanet", "udop", "vision-encoder-decoder"),
}
OTHER_USES = {
    **dict.fromkeys(
        ("blip", "blip-2", "idefics", "instructblip", "instructblipvideo", "kosmos-2"),
        "need an image in every prompt",
    ),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "draft for another model"),
    **dict.fromkeys(("moshi", "musicgen", "musicgen_melody"), "generate audio"),
    **dict.fromkeys(
        ("granite_speech", "granite_speech_plus"), "switch to other weights of text beside audio"
    ),
    "diffusion_gemma": "do not generate one token after the other",
    "evolla": "need a protein in every prompt",
    "pi0": "generate the movements of a robot",
}
"""Types that transformers counts among the language models, and what they do instead."""
SEEING = ("llama4", "qwen3_5", "qwen3_5_moe", "qwen4_exp")
"""Types with a class for text alone too. Their class for images and text computes text alike."""


def auto_class(config: HFConfig, has_own_code: bool = False, *, sees: bool = True) -> Any:
    """Return the class that loads a model. `has_own_code`: its folder defines the class. Without
    `sees`, that for text alone if there is one.

    Models for images and text are loaded whole, if their type is not of those whose class for text
    alone is loaded. Raises `UnsupportedModelError` for encoders and other models that do not
    complete text, and for types that the installed transformers does not have.
    """
    model_type = config.model_type
    if has_own_code:
        return AutoModelForCausalLM
    if model_type in HEARING:
        return HEARING[model_type]
    if model_type in OTHER_USES:
        raise UnsupportedModelError(
            f"models of type {model_type} {OTHER_USES[model_type]}; choose one that completes text"
        )
    if model_type in ENCODER_DECODERS:
        raise UnsupportedModelError(
            f"models of type {model_type} have an encoder; choose a decoder-only model"
        )
    if is_encoder(config):
        raise UnsupportedModelError(
            f"models of type {model_type} are encoders: they make embeddings and complete no text"
        )
    sees = sees and config.architecture.endswith("ForConditionalGeneration")
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not (sees and model_type in SEEING):
        return AutoModelForCausalLM
    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    hint = "; --trust-remote-code runs the code in its folder" if "auto_map" in config.raw else ""
    raise UnsupportedModelError(
        f"the installed transformers, {transformers.__version__}, has no causal language model of "
        f"type {model_type}{version_hint(model_type)}{hint}"
    )


def is_encoder(config: HFConfig) -> bool:
    """Whether a model's tokens attend to later ones, so that it does not complete text."""
    return config.model_type in ENCODERS and not config.keys.read("is_decoder", bool, False)


def empty_module(config: HFConfig, model_class: Any) -> nn.Module | None:
    """Return the model on the meta device; None if its own code would have to run.

    Raises `UnsupportedModelError` if transformers cannot build it.
    """
    if config.model_type not in CONFIG_MAPPING:
        return None
    raw = {key: value for key, value in config.raw.items() if key != "quantization_config"}
    try:
        with torch.device("meta"):
            module: nn.Module = model_class.from_config(
                CONFIG_MAPPING[config.model_type].from_dict(_known_dtypes(raw)),
                attn_implementation="eager",
            )
    except Exception as error:  # transformers raises many types; all mean the same here
        raise UnsupportedModelError(
            f"transformers cannot build the model: {reason_of(error)}"
        ) from error
    return module


def _known_dtypes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without dtypes that are `auto`, for which transformers' classes fail."""
    known = {k: v for k, v in raw.items() if k not in ("dtype", "torch_dtype") or v != "auto"}
    return {k: _known_dtypes(v) if isinstance(v, dict) else v for k, v in known.items()}


def vocab_size(module: nn.Module) -> int:
    """The width of the logits. Some tables of embeddings have more rows, which no token has."""
    config = module.config.get_text_config()  # type: ignore[operator, union-attr]
    return int(getattr(config, "unpadded_vocab_size", None) or config.vocab_size)


def stateful_model(
    module: nn.Module, info: ModelInfo, attention: AttentionBackend, kv_dtype: torch.dtype
) -> RecurrentModel | None:
    """Return `module` with recurrent states beside the paged cache; None if it keeps none.

    If its logits are wrong, recurrent layers give up kernels of ours. Raises
    `UnsupportedModelError` if they are wrong without any.
    """
    if not keeps_recurrent_state(module):
        return None
    while True:
        model = RecurrentModel(module, info, attention, kv_dtype)
        try:
            _check(model, module)
            return model
        except UnsupportedModelError as error:
            if not _gives_up_kernels(module):
                raise
            logger.warning("recurrent layers use fewer kernels: %s", error)


def _gives_up_kernels(module: nn.Module) -> bool:
    """Let recurrent layers not use their kernels for prompts, or else those that decode.

    Returns whether they used any.
    """
    mixers = [part for part in module.modules() if isinstance(part, SlotMixer)]
    for use in ("packs_prompts", "decodes"):
        if any(getattr(mixer, use) for mixer in mixers):
            for mixer in mixers:
                setattr(mixer, use, False)
            return True
    return False


def plain_model(
    module: nn.Module, info: ModelInfo, reason: UnsupportedModelError, progress: Progress
) -> PlainModel:
    """Return `module` with its own cache, or without one if that cache gives other logits.

    `reason`: why the paged cache cannot serve it. Raises `UnsupportedModelError` for a model that
    is not causal.
    """
    module.set_attn_implementation("eager")  # type: ignore[operator]
    for caches, way in ((True, "with its own cache"), (False, "without a cache, which is slow")):
        try:
            model = PlainModel(module, info, caches=caches)
            _check(model, module)
        except UnsupportedModelError as error:
            last = error
            continue
        progress(f"running {info.name} one sequence at a time, {way}: {reason}")
        return model
    raise last


def refuse_deterministic(config: EngineConfig) -> None:
    """Raise `UnsupportedModelError` if a model that keeps a state is to give the same bits."""
    if config.deterministic:
        raise UnsupportedModelError(
            "cannot run deterministically: the model keeps a state, whose bits depend on how its "
            "prompt is split"
        )


def _check(model: RecurrentModel | PlainModel, module: nn.Module) -> None:
    dtype = next(module.parameters()).dtype
    exact = check_steps(model, module, model.device, logits_tolerance(dtype))
    model.info = replace(model.info, exact_chunks=exact)
