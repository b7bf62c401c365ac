"""Tiny random models that see, with real settings of their families' processors.

Each folder has weights in float32, a config, a byte-level tokenizer with the family's special
tokens, the settings of its processor, and a chat template that places images as the published one
does.
"""

import json
from collections import ChainMap
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from stonechat_models.media.processor_loading import version_refusal
from tests.models.every_family import skip_without, tiny_config
from tests.models.more_vision_families import MORE_FAMILIES
from tests.models.tiny_tokenizers import EOS, OTHER, byte_level_backend
from tests.models.vision_families import FAMILIES, VisionFamily

IM_START, IM_END = "<|im_start|>", "<|im_end|>"


def chat_template(
    image: str,
    start: str = IM_START + "{{ m.role }}\n",
    end: str = IM_END + "\n",
    assistant: str = IM_START + "assistant\n",
    before: str = "",
) -> str:
    """Return a template that writes `image` for each image among the items of a message."""
    return (
        before + "{% for m in messages %}" + start + "{% if m.content is string %}{{ m.content }}"
        "{% else %}{% for c in m.content %}{% if c.type == 'image' %}"
        + image
        + "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
        + end
        + "{% endfor %}"
        "{% if add_generation_prompt %}" + assistant + "{% endif %}"
    )


ALL_FAMILIES = ChainMap(FAMILIES, MORE_FAMILIES)

CONFIG_TOKENS = {
    "video_token_id": ("<|video_pad|>", "<|video|>", "<video>"),
    "vision_start_token_id": ("<|vision_start|>",),
    "vision_end_token_id": ("<|vision_end|>",),
    "image_start_token_id": ("<|begin_of_image|>",),
    "image_end_token_id": ("<|end_of_image|>",),
    "video_start_token_id": ("<|begin_of_video|>",),
    "video_end_token_id": ("<|end_of_video|>",),
    "boi_token_index": ("<start_of_image>",),
    "eoi_token_index": ("<end_of_image>",),
    "boi_token_id": ("<|image>",),
    "eoi_token_id": ("<image|>",),
}
"""Attributes of configs, and the tokens whose ids they may have."""


def vision_tokenizer(family: VisionFamily) -> PreTrainedTokenizerFast:
    """Return the byte-level tokenizer with the family's special tokens behind its own."""
    texts = dict.fromkeys([family.token, *family.named_tokens.values(), *family.tokens])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_backend(),
        eos_token=EOS,
        pad_token=EOS,
        extra_special_tokens=family.named_tokens,
        **({"bos_token": OTHER} if family.begins else {}),
    )
    tokenizer.add_tokens([IM_START, IM_END, *texts], special_tokens=True)
    return tokenizer


def vision_config(name: str) -> Any:
    """Return the tiny config that goes with the family's processor."""
    family = ALL_FAMILIES[name]
    tokenizer = vision_tokenizer(family)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 4096, **family.text}
    default = tiny_config(family.model_type or name)
    vocabulary = tokenizer.get_vocab()
    token_ids = {
        attribute: vocabulary[token]
        for attribute, tokens in {**CONFIG_TOKENS, "image_token_id": (family.token,)}.items()
        for token in tokens
        if hasattr(default, attribute) and token in vocabulary
    }
    settings = default.to_dict()
    if "vocab_size_per_layer_input" in settings["text_config"]:
        text = {"vocab_size_per_layer_input": len(tokenizer), **text}
    for part, changes in {"text_config": text, "vision_config": family.vision}.items():
        settings[part] = {**(settings[part] or {}), **changes}
    return type(default)(**{**settings, **token_ids, **family.config})


def save_vision_model(folder: Path, name: str, seed: int = 0) -> Path:
    """Save a family's tiny model, with all files that the server needs, in a new folder."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(vision_config(name)).float()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3 if "embed" in path else 0.25)
        for path, buffer in model.named_buffers():
            if path.endswith(("_min", "_max")):
                buffer.fill_(-0.7 if path.endswith("_min") else 0.7)
            elif path.endswith(("std_bias", "std_scale")):
                buffer.uniform_(0.5, 1.5)
        # The model's own code takes a placeholder that it generated for a further image.
        tokens = [ALL_FAMILIES[name].token, *CONFIG_TOKENS["video_token_id"]]
        placeholders = set(vision_tokenizer(ALL_FAMILIES[name]).convert_tokens_to_ids(tokens))
        model.get_output_embeddings().weight[sorted(placeholders - {None})] = 0
    save_processor(folder, name)
    model.save_pretrained(folder)
    return folder


def save_processor(folder: Path, name: str) -> Path:
    """Save the files of a family's tokenizer and processor in a new folder."""
    family = ALL_FAMILIES[name]
    skip_without(family.model_type or name)
    folder.mkdir(parents=True)
    vision_tokenizer(family).save_pretrained(folder)
    found = family.processor_class or PROCESSOR_MAPPING_NAMES[family.model_type or name]
    if refusal := version_refusal(found):
        pytest.skip(refusal)
    processor_class = {"processor_class": found}
    settings = {
        "preprocessor_config.json": family.image_processor | processor_class,
        "processor_config.json": family.processor | processor_class,
    }
    for file, content in settings.items():
        (folder / file).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(
        chat_template(family.image, before="{{ bos_token }}" if family.begins else "")
    )
    return folder
