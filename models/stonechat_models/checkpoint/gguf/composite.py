"""Describes a language model's GGUF file and that of its vision and audio parts as one model."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

from stonechat_models.checkpoint.cache import Progress, fill_once
from stonechat_models.checkpoint.gguf.convert import conversion_key
from stonechat_models.checkpoint.gguf.metadata import Config, refusal
from stonechat_models.checkpoint.gguf.mmproj import (
    projectors_of,
    read_mmproj,
    tower_weights,
    whole_of,
)
from stonechat_models.checkpoint.gguf.projectors.projector import Projector
from stonechat_models.checkpoint.gguf.reader import GgufFile, read_gguf
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import read_json, reading

# Part of the cache key. Raise it whenever the result changes.
COMPOSITE_VERSION = 2
MROPE_AXES = 3
MROPE: dict[str, Config] = {
    "qwen2vl": {},
    "qwen3vl": {"mrope_interleaved": True},
    "qwen3vlmoe": {"mrope_interleaved": True},
}
"""Architectures whose texts have plain rotary parameters, and what those of images add."""


def composite_folder(path: Path, folder: Path, mmproj_path: Path, progress: Progress) -> Path:
    """Return the folder of Hugging Face files for a language model with its other parts.

    `folder` is that of the language model alone. The first call writes it, into the cache. Raises
    `ModelLoadError` if the two files are not parts of one model, or one of them is not right.
    """
    key = conversion_key([mmproj_path])
    target = folder.with_name(f"{folder.name}-{key}-v{COMPOSITE_VERSION}")

    def build(target: Path) -> None:
        gguf, mmproj = read_gguf(path), read_mmproj(mmproj_path)
        progress(f"reading {mmproj_path.name} (once)")
        with reading(mmproj_path):
            _write(gguf, mmproj, folder, target)
            _check_towers(gguf, mmproj, target)

    return fill_once(target, progress, build)


def composite_config(text: Config, gguf: GgufFile, mmproj: GgufFile) -> Config:
    """Return the content of config.json; `text` is that of the language model alone.

    Tokens that the vocabulary lacks have no id in it. Raises `UnsupportedModelError` as `whole_of`
    does, and for metadata that is missing or cannot be right.
    """
    whole, projectors = whole_of(mmproj, gguf), projectors_of(mmproj)
    own = {key: value for key, value in text.items() if key != "architectures"}
    own["model_type"] = whole.text_type or text["model_type"]
    ids = {token: i for i, token in enumerate(gguf.strings("tokenizer.ggml.tokens"))}
    config = {
        "model_type": whole.model_type,
        "architectures": [whole.class_name],
        "tie_word_embeddings": text["tie_word_embeddings"],
        "text_config": own,
    }
    for projector in projectors:
        own |= projector.text(gguf)
        config |= {key: ids[token] for key, token in projector.tokens.items() if token in ids}
        config |= {**projector.whole(mmproj), projector.section: projector.tower(mmproj)}
    if "vision_config" in config and gguf.architecture in MROPE:
        own["rope_parameters"] = _with_axes(gguf, text["rope_parameters"])
    return config


def _with_axes(gguf: GgufFile, rope: Config) -> Config:
    """Return rotary parameters with the axes of images, which texts do not need."""
    sections = gguf.value("rope.dimension_sections")
    if not isinstance(sections, list):
        raise refusal(gguf, "rope.dimension_sections is missing")
    return {**rope, "mrope_section": sections[:MROPE_AXES], **MROPE[gguf.architecture]}


def _write(gguf: GgufFile, mmproj: GgufFile, folder: Path, target: Path) -> None:
    texts = {name: read_json(folder / f"{name}.json") or {} for name in ("config", "tokenizer")}
    config = composite_config(texts["config"], gguf, mmproj)
    tokenizer_config = read_json(folder / "tokenizer_config.json") or {}
    named_tokens: dict[str, str] = {}
    processor: Config = {}
    for projector in projectors_of(mmproj):
        ids = _add_tokens(texts["tokenizer"], projector, gguf)
        config |= {key: ids[token] for key, token in projector.tokens.items()}
        named_tokens |= projector.named_tokens
        part = "image_processor" if projector.section == "vision_config" else "feature_extractor"
        processor |= {"processor_class": projector.processor_class, **projector.processor(mmproj)}
        processor[part] = projector.prepare(mmproj)
        _set_template(tokenizer_config, projector)
    contents = {
        "config": config,
        "tokenizer": texts["tokenizer"],
        "tokenizer_config": tokenizer_config | {"extra_special_tokens": named_tokens},
        "generation_config": read_json(folder / "generation_config.json") or {},
        "processor_config": processor,
    }
    for name, content in contents.items():
        (target / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def _set_template(tokenizer_config: Config, projector: Projector) -> None:
    """Replace a chat template that has no place for a clip, if another one is known."""
    template = json.dumps(tokenizer_config.get("chat_template"), ensure_ascii=False)
    placeholder = next(iter(projector.tokens.values()))
    if projector.chat_template is not None and placeholder not in template:
        tokenizer_config.pop("chat_template", None)
        if projector.chat_template:
            tokenizer_config["chat_template"] = projector.chat_template


def _add_tokens(tokenizer: dict[str, Any], projector: Projector, gguf: GgufFile) -> dict[str, int]:
    """Let a tokenizer read the special tokens of images; return their ids.

    The placeholder's row of the embedding is not read.
    """
    model, added = tokenizer["model"], tokenizer["added_tokens"]
    vocab: dict[str, int] = model["vocab"]
    placeholder, *others = projector.tokens.values()
    if placeholder not in vocab:
        spare = [token for token in vocab if token and re.fullmatch(projector.spare, token)]
        if not spare:
            raise refusal(gguf, f"its vocabulary has no token {placeholder}")
        old = max(spare, key=lambda token: vocab[token])
        vocab[placeholder] = vocab.pop(old)
        model["merges"] = [pair for pair in model["merges"] if old not in (*pair, "".join(pair))]
        added[:] = [token for token in added if token["content"] != old]
    missing = [token for token in others if token not in vocab]
    if missing:
        raise refusal(gguf, f"its vocabulary has no token {missing[0]}")
    known = {token["content"] for token in added}
    for token in projector.tokens.values():
        if token not in known:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            added.append({"id": vocab[token], "content": token, **flags, "special": True})
    added.sort(key=lambda token: token["id"])
    return {token: vocab[token] for token in projector.tokens.values()}


def _check_towers(gguf: GgufFile, mmproj: GgufFile, folder: Path) -> None:
    """Raise `ModelLoadError` unless the tensors are those of transformers' towers."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    config.get_text_config().num_hidden_layers = 0
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a text without layers has parameters without elements
        module = getattr(transformers, whole_of(mmproj, gguf).class_name)(config)
    text = module.get_decoder()
    expected = {name: tuple(p.shape) for name, p in module.state_dict().items()}
    for name, _ in [*module.named_modules()]:
        if module.get_submodule(name) in (text, module.get_output_embeddings()):
            expected = {k: s for k, s in expected.items() if not k.startswith(f"{name}.")}
    found = {weight.name: weight.shape for weight in tower_weights(mmproj)}
    wrong = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if wrong:
        raise ModelLoadError(
            f"{mmproj.path}: weights of the tower are missing or have another shape: "
            f"{', '.join(wrong[:5])}; download the file again"
        )
