"""Tiny random models that hear, with real settings of their families' processors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from stonechat_models.backends.transformers.kinds import auto_class
from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.media.processor_loading import version_refusal
from tests.models.audio_families import FAMILIES, AudioFamily
from tests.models.every_family import tiny_config
from tests.models.tiny_tokenizers import EOS, byte_level_backend
from tests.models.vision_models import IM_END, IM_START, chat_template


def audio_tokenizer(family: AudioFamily) -> PreTrainedTokenizerFast:
    """Return the byte-level tokenizer with the family's special tokens behind its own."""
    texts = dict.fromkeys([family.token, *family.named_tokens.values(), *family.tokens])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_backend(),
        eos_token=EOS,
        pad_token=EOS,
        extra_special_tokens=family.named_tokens,
    )
    tokenizer.add_tokens([IM_START, IM_END, *texts], special_tokens=True)
    return tokenizer


def audio_config(name: str) -> Any:
    """Return the tiny config that goes with the family's processor."""
    family = FAMILIES[name]
    tokenizer = audio_tokenizer(family)
    settings = tiny_config(name).to_dict()
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 4096, **family.text}
    parts = {"text_config": text, "audio_config": family.tower, "vision_config": family.vision}
    for part, changes in parts.items():
        if changes:
            settings[part] = {**(settings[part] or {}), **changes}
    ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in {"audio_token_id": family.token, **family.config_tokens}.items()
    }
    return type(tiny_config(name))(**{**settings, **ids})


def save_audio_model(folder: Path, name: str, seed: int = 0) -> Path:
    """Save a family's tiny model, with all files that the server needs, in a new folder."""
    torch.manual_seed(seed)
    config = audio_config(name)
    model_class = auto_class(parse_config(config.to_dict(), name))
    model = model_class.from_config(config).float()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3 if "embed" in path else 0.2)
    save_audio_processor(folder, name)
    model.save_pretrained(folder)
    return folder


def save_audio_processor(folder: Path, name: str) -> Path:
    """Save the files of a family's tokenizer and processor in a new folder."""
    family = FAMILIES[name]
    if refusal := version_refusal(family.processor_class):
        pytest.skip(refusal)
    folder.mkdir(parents=True)
    audio_tokenizer(family).save_pretrained(folder)
    processor_class = {"processor_class": family.processor_class}
    settings = {
        "preprocessor_config.json": family.feature_extractor | processor_class,
        "processor_config.json": family.processor | processor_class,
    }
    if family.image_processor:  # then one file has all parts
        del settings["preprocessor_config.json"]
        settings["processor_config.json"] |= {
            "feature_extractor": family.feature_extractor,
            "image_processor": family.image_processor,
        }
    for file, content in settings.items():
        (folder / file).write_text(json.dumps(content))
    template = chat_template(family.audio).replace("c.type == 'image'", "c.type == 'audio'")
    (folder / "chat_template.jinja").write_text(template)
    return folder
