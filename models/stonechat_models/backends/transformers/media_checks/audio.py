"""The check at load of models that take audio.

The model's own code, tower included, computes a prompt with a clip as the processor makes it. A
step of the engine gets the embeddings that the engine would give it. If its logits are others, the
model takes no audio.
"""

import inspect
from dataclasses import replace
from typing import Any

import torch

from stonechat_models.backends.transformers.cuda.memory import tower_memory
from stonechat_models.backends.transformers.media_checks.common import (
    RUNS_PLAINLY,
    MediaCase,
    adapter_refusal,
    check_case,
    random_text,
)
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.plain import PlainModel
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.media.encode import encode_media, tensors_of
from stonechat_models.media.hf_processor import (
    HFProcessor,
    as_tensors,
    checked_processor,
    noise_clip,
)
from stonechat_models.media.records import DEFAULT_MAX_SECONDS, UnusableMediaError
from stonechat_models.model_info import AudioInfo, ModelInfo
from stonechat_models.types import MediaInput

BEFORE, AFTER = 5, 6
"""Tokens of text around the clip of the check."""
LONG_SECONDS = (DEFAULT_MAX_SECONDS, 300.0, 30.0, 10.0)
"""Clips by which the memory of the tower is measured: the longest of them that the model takes."""
AUDIO_TYPE = 3
"""The type of audio tokens where a model reads the types of tokens."""


def hears(config: Any) -> bool:
    """Whether a model has a tower for audio."""
    return getattr(config, "audio_config", None) is not None


def audio_refusal(module: Any, num_ranks: int = 1) -> str:
    """Return why a model that could take audio takes none, as far as its code says; or nothing."""
    if num_ranks > 1:
        return "several devices share the model"
    if getattr(module.config, "audio_token_id", None) is None:
        return "its config names no token for audio"
    return ""


def audio_processor(module: Any, files: ModelFiles) -> HFProcessor | str:
    """Return a model's processor, or why the model takes no audio because of its files."""
    if not hears(module.config) or audio_refusal(module):
        return ""
    token_id = int(module.config.audio_token_id)
    return adapter_refusal(module, files.adapters) or checked_processor(
        files.folder, "audio", token_id
    )


def audio_case(module: Any, processor: HFProcessor | str, num_ranks: int = 1) -> MediaCase | str:
    """Run the model's own code on the check's prompt. Call before `module` is changed.

    `processor`: that of the model, or why there is none. Returns why the model takes no audio if
    that is sure already; empty for a model that could not.
    """
    if not hears(module.config):
        return ""
    if refusal := audio_refusal(module, num_ranks):
        return refusal
    if isinstance(processor, str):
        return processor
    try:
        return _run(module, processor)
    except Exception as error:  # whatever the model's own code raises
        return f"a forward pass with audio fails: {error}"


def with_audio(
    model: TransformersModel | PlainModel, case: MediaCase | str, processor: HFProcessor | str = ""
) -> ModelInfo:
    """Return the model's info, which says whether it takes audio."""
    if isinstance(case, MediaCase) and not isinstance(model, TransformersModel):
        case = RUNS_PLAINLY
    if isinstance(case, str):
        return replace(model.info, audio_refusal=case)
    assert isinstance(model, TransformersModel)
    assert isinstance(case.info, AudioInfo)
    try:
        check_case(model, case, "audio")
        audio = case.info
        if isinstance(processor, HFProcessor) and model.info.device.startswith("cuda"):
            audio = replace(audio, encoding_bytes=_encoding_bytes(model, processor))
        return replace(model.info, audio=audio)
    except UnsupportedModelError as error:
        return replace(model.info, audio=None, audio_refusal=str(error))


@torch.inference_mode()
def _run(module: Any, processor: HFProcessor) -> MediaCase:
    clip = _prepared(processor, noise_clip(processor), BEFORE)
    table, token_id = module.get_input_embeddings(), int(module.config.audio_token_id)
    device, dtype = table.weight.device, table.weight.dtype
    end = BEFORE + clip.num_tokens
    token_ids = random_text(module, end + AFTER)
    token_ids[BEFORE:end] = token_id
    names = set(inspect.signature(module.forward).parameters)
    arguments = tensors_of(clip, names, device, dtype)
    if "mm_token_type_ids" in names:
        types = torch.zeros_like(token_ids)
        types[BEFORE:end] = AUDIO_TYPE
        arguments["mm_token_type_ids"] = types.unsqueeze(0).to(device)
    token_ids = token_ids.to(device)
    module.set_attn_implementation("eager")
    output = module(input_ids=token_ids.unsqueeze(0), use_cache=False, **arguments)
    features = encode_media(module, clip, device, dtype)
    return MediaCase(
        info=AudioInfo(token_id=token_id),
        token_ids=token_ids,
        places=clip.places,
        embeddings=features.embeddings,
        logits=output.logits[0].float(),
    )


def _prepared(processor: HFProcessor, samples: Any, start: int = 0) -> MediaInput:
    """Return a clip, or the first piece of a long one."""
    _, num_tokens, arrays = processor.prepare(samples)
    length, piece = processor.cut(num_tokens, arrays)[0]
    return MediaInput(b"", ((start, length),), as_tensors(piece), "audio")


def _long_clip(processor: HFProcessor) -> MediaInput:
    """Return what the tower encodes at a time of the longest clip that the model takes."""
    for seconds in LONG_SECONDS:
        try:
            return _prepared(processor, noise_clip(processor, seconds))
        except UnusableMediaError:
            continue
    raise UnsupportedModelError("its processor takes no clip of a few seconds")


def _encoding_bytes(model: TransformersModel, processor: HFProcessor) -> int:
    """Measure what the tower takes for a long clip. Raises `UnsupportedModelError` if it fails."""
    try:
        return tower_memory(model, _long_clip(processor), model.device, "a long clip")
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise UnsupportedModelError(f"its audio tower fails: {error}") from error
