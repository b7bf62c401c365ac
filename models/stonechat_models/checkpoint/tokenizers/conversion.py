"""Converts other formats of tokenizers to tokenizer.json, in the user's cache."""

import hashlib
import json
import os
from pathlib import Path

from stonechat_models.checkpoint.cache import Progress, cache_root, file_sha256, fill_once
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.model_file import read_json, reason_of

# Part of the cache key. Raise it whenever the result of a conversion changes.
CONVERSION_VERSION = 2
TOKENIZER_SOURCES = (
    *("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tekken.json"),
)
CONVERTED_SUFFIXES = frozenset({".json", ".model", ".txt", ".jinja", ".py"})
"""Files from which a tokenizer is converted: all but weights, and small enough to hash whole."""
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model")
SHIFTED_IDS = frozenset({"xglm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xlnet", "rembert"})
"""Model types whose token ids are not those of their SentencePiece model."""
TEKKEN_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}


def tokenizer_folder(folder: Path) -> Path | None:
    """Return where the cache keeps the tokenizer that is converted from other files of `folder`.

    Its name is a hash of the folder's path, to which its links lead, and of all files that the
    conversion may read. None: there is nothing to convert.
    """
    if not (folder / "config.json").is_file() or not any(
        (folder / name).is_file() for name in TOKENIZER_SOURCES
    ):
        return None
    digest = hashlib.sha256(b"%d " % CONVERSION_VERSION + os.fsencode(folder.resolve()))
    for path in sorted(folder.rglob("*")):
        if path.suffix in CONVERTED_SUFFIXES and path.is_file():
            name = os.fsencode(path.relative_to(folder))
            digest.update(b"%s\0%s" % (name, file_sha256(path).encode()))
    return cache_root() / "tokenizers" / digest.hexdigest()[:24]


def with_tokenizer(folder: Path, progress: Progress) -> Path:
    """Convert another tokenizer format to tokenizer.json. Return the cache folder that holds it.

    SentencePiece models are converted here: the result of transformers lacks the space before the
    first word unless the files beside the model name its class. The cache folder links to the other
    files of `folder`, the weights included.
    """
    converted = tokenizer_folder(folder)
    if converted is None:
        raise ModelLoadError(
            f"{folder} has neither tokenizer.json nor another tokenizer file; add the model's own"
        )

    def build(target: Path) -> None:
        progress(f"converting the tokenizer of {folder.name} (once)")
        path = _sentencepiece_file(folder)
        if path is not None:
            config = read_json(folder / "config.json") or {}
            if config.get("model_type") in SHIFTED_IDS:
                raise UnsupportedModelError(
                    f"{folder}: its token ids are not those of {path.name}; add the model's own "
                    "tokenizer.json"
                )
            from stonechat_models.checkpoint.tokenizers.sentencepiece import convert_sentencepiece

            names = convert_sentencepiece(path, target / "tokenizer.json")
        else:
            _convert_with_transformers(folder, target)
            names = _tekken_names(folder)
        name_special_tokens(folder, target / "tokenizer_config.json", names)
        for path in folder.iterdir():
            if path.is_file() and not (target / path.name).exists():
                (target / path.name).symlink_to(path.resolve())

    return fill_once(converted, progress, build)


def _sentencepiece_file(folder: Path) -> Path | None:
    """Return the SentencePiece model of a folder; None if it has none."""
    for name in SENTENCEPIECE_FILES:
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:  # tiktoken's files, which are text, have this name too
                return path if file.read(1) == b"\n" else None
    return None


def _convert_with_transformers(folder: Path, target: Path) -> None:
    from transformers import AutoTokenizer

    try:
        # Never the code of the folder: by default, the library asks on stdin whether to run it.
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        tokenizer.save_pretrained(target)
    except Exception as error:  # the library raises many types; all mean the same here
        raise ModelLoadError(
            f"{folder}: cannot convert its tokenizer to tokenizer.json; add that file: "
            f"{reason_of(error)}"
        ) from error
    if not (target / "tokenizer.json").is_file():
        raise ModelLoadError(
            f"{folder}: its tokenizer cannot be converted to tokenizer.json; add that file"
        )


def _tekken_names(folder: Path) -> dict[str, str]:
    """Return bos_token, eos_token, … of a tekken.json. transformers leaves them out."""
    tokens = (read_json(folder / "tekken.json") or {}).get("special_tokens") or ()
    known = {token.get("token_str") for token in tokens}
    return {name: text for name, text in TEKKEN_TOKENS.items() if text in known}


def name_special_tokens(folder: Path, target: Path, names: dict[str, str]) -> None:
    """Write to `target` the tokenizer_config.json of `folder`, with the tokens that it leaves out.

    What the library that converted the tokenizer has written there counts where `folder` has none.
    """
    others = read_json(folder / "special_tokens_map.json") or {}
    config = {name: text for name, text in names.items() if not others.get(name)}
    for source in (target, folder / "tokenizer_config.json"):
        config |= {k: v for k, v in (read_json(source) or {}).items() if v is not None}
    target.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
