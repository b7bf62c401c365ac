"""Loads a model of speech from its folder."""

from dataclasses import replace
from typing import Any

import torch
from transformers import WhisperForConditionalGeneration

from stonechat_models.backends.transformers.loading.load import new_info
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.backends.transformers.loading.quantize import weight_bytes
from stonechat_models.backends.transformers.pooling_models.embedder import refuse_settings
from stonechat_models.backends.transformers.speech.whisper import WhisperTranscriber
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.hardware.device import choose_dtype
from stonechat_models.media.hf_processor import audio_packages_refusal
from stonechat_models.media.speech import SpeechProcessor
from stonechat_models.model_file import reason_of
from stonechat_models.model_info import AudioInfo, SpeechInfo
from stonechat_models.text.tokenizer import Tokenizer

NUM_START_TOKENS = 5
"""How many tokens of the half of the context that a prompt may fill are other ones, at most."""
PROMPT_TOKEN = "<|startofprev|>"
NEEDED = ("eos_token_id", "decoder_start_token_id", "no_timestamps_token_id")
"""What the generation config must have. Old ones lack the last."""


def load_speech_model(
    files: ModelFiles,
    config: EngineConfig,
    device: torch.device,
    tokenizer: Tokenizer,
    progress: Progress,
) -> WhisperTranscriber:
    """Load a model that transcribes speech.

    Raises `ModelLoadError`, or `UnsupportedModelError` with the reason why it cannot.
    """
    refuse_settings(files, config, "a model of speech")
    if refusal := audio_packages_refusal():
        raise UnsupportedModelError(refusal)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dtype = choose_dtype(config.dtype, files.config.dtype, device)
    module: Any = load_module(
        files,
        config,
        device,
        dtype,
        model_class=WhisperForConditionalGeneration,
        progress=progress,
    )
    info = replace(
        new_info(files, config, device, module, dtype),
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        weight_bytes=weight_bytes(module),
        max_model_len=int(module.config.max_target_positions),
        generates=False,
        audio=AudioInfo(token_id=int(module.config.decoder_start_token_id)),
        speech=_speech_info(module, tokenizer),
    )
    model = WhisperTranscriber(module, tokenizer, info, device)
    _check_features(files, model.window_frames, int(module.config.num_mel_bins))
    return model


def _speech_info(module: Any, tokenizer: Tokenizer) -> SpeechInfo:
    config = module.generation_config
    missing = [name for name in NEEDED if getattr(config, name, None) is None]
    if missing:
        raise UnsupportedModelError(
            f"its generation_config.json has no {missing[0]}; take the file of a newer version of "
            "the model, which also names its languages"
        )
    languages = getattr(config, "lang_to_id", None) or {}
    if getattr(config, "is_multilingual", None) is False:
        languages = {}
    prompt_ids = tokenizer.encode_parts([(PROMPT_TOKEN, False)])
    if len(prompt_ids) != 1:
        raise UnsupportedModelError(f"its tokenizer has no token {PROMPT_TOKEN}")
    return SpeechInfo(
        languages=tuple([token.strip("<|>") for token in languages]),
        max_prompt_tokens=int(module.config.max_target_positions) // 2 - NUM_START_TOKENS,
        prompt_id=prompt_ids[0],
        start_id=int(config.decoder_start_token_id),
        has_words=bool(getattr(config, "alignment_heads", None)),
    )


def _check_features(files: ModelFiles, window_frames: int, num_bands: int) -> None:
    """Refuse a feature extractor that is not the model's."""
    try:
        extractor = SpeechProcessor(files.folder).extractor
    except Exception as error:
        reason = f"its feature extractor cannot be loaded: {reason_of(error)}"
        raise UnsupportedModelError(reason) from error
    sizes = (extractor.nb_max_frames, extractor.feature_size)
    if sizes != (window_frames, num_bands):
        raise UnsupportedModelError(
            f"its feature extractor makes windows of {sizes[0]} frames with {sizes[1]} bands, and "
            f"the model takes {window_frames} with {num_bands}"
        )
