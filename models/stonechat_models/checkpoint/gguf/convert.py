"""Converts all of a GGUF file but its weights into a folder of Hugging Face files, once.

The folder lies in the user's cache under a hash of all that the conversion reads. So a copied or
renamed file finds it again. A file with other metadata, or one that was edited in place, does not.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from stonechat_models.checkpoint.cache import Progress, cache_root, fill_once, sampled_hash
from stonechat_models.checkpoint.generation_config import is_allowed
from stonechat_models.checkpoint.gguf.config import config_of, eos_token_ids
from stonechat_models.checkpoint.gguf.embedder import write_embedder_files
from stonechat_models.checkpoint.gguf.metadata import Config
from stonechat_models.checkpoint.gguf.reader import GgufFile, gguf_parts, read_gguf, read_part
from stonechat_models.checkpoint.gguf.rope import CONFIG_TENSORS
from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.model_file import reading

# Part of the cache key. Raise it whenever the result of a conversion changes.
CONVERSION_VERSION = 7
SAMPLING_KEYS = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""The metadata keys of recommended sampling parameters, behind `general.sampling.`."""


def converted_folder(path: Path, progress: Progress) -> Path:
    """Return the folder of Hugging Face files for a GGUF file. The first call converts it.

    The files are config.json, generation_config.json, tokenizer.json and tokenizer_config.json
    (with the chat template), and of an embedder those of sentence-transformers. Raises
    `ModelLoadError` for a file that cannot be read correctly.
    """
    key = conversion_key(gguf_parts(path))
    folder = cache_root() / "gguf" / f"{key}-v{CONVERSION_VERSION}"

    def build(target: Path) -> None:
        progress(f"converting the tokenizer and configuration of {path.name} (once)")
        convert(read_gguf(path), target)

    return fill_once(folder, progress, build)


def conversion_key(parts: list[Path]) -> str:
    """Return how the names of all folders begin that are converted from a GGUF file.

    It covers all metadata and tensor headers of every part, the sizes, and samples of the weights.
    Raises `ModelLoadError` for a file that is damaged or not GGUF.
    """
    files = [read_part(part, skip_texts=True) for part in parts]
    digest = hashlib.sha256(sampled_hash(parts, [file.data_start for file in files]).encode())
    for file in files:
        for name in CONFIG_TENSORS:  # the configuration is read from these too
            if name in file.tensors:
                digest.update(file.tensors[name].data.tobytes())
    return digest.hexdigest()[:24]


def convert(gguf: GgufFile, folder: Path) -> None:
    """Write the Hugging Face files that describe a GGUF file into `folder`.

    Raises `ModelLoadError` for a file that they cannot describe, and `OSError` if they cannot be
    written.
    """
    from stonechat_models.checkpoint.gguf.tokenizer import build_tokenizer

    with reading(gguf.path):
        config = config_of(gguf)
        parse_config(config, str(gguf.path))
        files = {
            "config.json": _json(config),
            "generation_config.json": _json(_generation_config(gguf, config)),
            "tokenizer.json": build_tokenizer(gguf).to_str(),
            "tokenizer_config.json": _json(_tokenizer_config(gguf)),
        }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    with reading(gguf.path):
        write_embedder_files(gguf, folder)


def _json(content: Config) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _generation_config(gguf: GgufFile, config: Config) -> Config:
    return {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": eos_token_ids(gguf),
        "pad_token_id": config["pad_token_id"],
        **dict(_sampling(gguf)),
    }


def _sampling(gguf: GgufFile) -> Iterator[tuple[str, float]]:
    """Yield the recommended sampling parameters. What no request may have is left out."""
    for name, key in SAMPLING_KEYS.items():
        value = gguf.metadata.get(f"general.sampling.{key}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if is_allowed(name, value) and (name != "top_k" or value == int(value)):
            yield name, value


def _tokenizer_config(gguf: GgufFile) -> Config:
    from stonechat_models.checkpoint.gguf.tokenizer import adds_bos, adds_eos

    tokens = gguf.strings("tokenizer.ggml.tokens")
    content: Config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf.value("context_length"),
        "add_bos_token": adds_bos(gguf),
        "add_eos_token": adds_eos(gguf),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = gguf.integer(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None and token_id < len(tokens):
            content[f"{name}_token"] = tokens[token_id]
    templates = _chat_templates(gguf)
    if set(templates) == {"default"}:
        content["chat_template"] = templates["default"]
    elif templates:
        content["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
    return content


def _chat_templates(gguf: GgufFile) -> dict[str, str]:
    key = "tokenizer.chat_template"
    templates = {"default": gguf.metadata.get(key)}
    for name in gguf.strings("tokenizer.chat_templates"):
        templates[name] = gguf.metadata.get(f"{key}.{name}")
    return {name: text for name, text in templates.items() if isinstance(text, str)}
