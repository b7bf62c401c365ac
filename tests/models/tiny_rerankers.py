"""Tiny random classifiers with one label, in folders as transformers writes them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from tests.models.tiny_embedders import (
    COMMON,
    MAX_POSITIONS,
    SPECIAL,
    tokenizer_backend,
    write_json,
)
from tests.models.tiny_embedders import FAMILIES as ENCODERS

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2}),
    "qwen3": ENCODERS["qwen3"],
    "gemma2": (
        "Gemma2Config",
        {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 12},
    ),
}
NAMES = ("bert", "roberta", "xlm-roberta", "modernbert", "deberta-v2", "electra", "distilbert")
FAMILIES = {**{name: ENCODERS[name] for name in NAMES}, **DECODERS}
OWN = {
    "bert": "BertTokenizer",
    "electra": "BertTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
TYPED = ("bert", "electra")
"""Families that are told which tokens belong to the second text."""


def pair_tokenizer(family: str) -> Backend:
    """A vocabulary of WordPiece that puts special tokens around pairs as the family does."""
    backend = tokenizer_backend()
    if family in DECODERS:
        backend.post_processor = processors.TemplateProcessing(
            single="$A", pair="$A [SEP] $B:1 [CLS]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return backend
    is_roberta = family in ("roberta", "xlm-roberta")
    pair = "[CLS] $A [SEP] [SEP] $B [SEP]" if is_roberta else "[CLS] $A [SEP] $B:1 [SEP]:1"
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend


def tiny_reranker(family: str, **changes: Any) -> torch.nn.Module:
    """Return a float32 classifier in eval mode, with weights that are large enough to tell texts
    apart."""
    import transformers

    name, settings = FAMILIES[family]
    values = {**COMMON, "num_labels": 1, **settings, **changes}
    config = getattr(transformers, name)(**values)
    torch.manual_seed(0)
    auto = transformers.AutoModelForSequenceClassification
    module: torch.nn.Module = auto.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.5)
    return module


def save_reranker(
    folder: Path,
    family: str = "bert",
    *,
    config: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Save a classifier with its tokenizer.

    `config`, `tokenizer`: what config.json and tokenizer_config.json have beside the usual.
    """
    import json

    folder.mkdir(parents=True)
    tiny_reranker(family, **changes).save_pretrained(folder)  # type: ignore[operator]
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text()) | (config or {}))
    pair_tokenizer(family).save(str(folder / "tokenizer.json"))
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": text for name, text in zip(names, SPECIAL, strict=True)}
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if family in TYPED else [])]
    usual = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITIONS,
        "model_input_names": inputs,
    }
    write_json(folder / "tokenizer_config.json", {**tokens, **usual, **(tokenizer or {})})
    return folder
