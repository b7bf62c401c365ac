"""Tiny random embedding models in folders as sentence-transformers writes them."""

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

WORDS = ("the", "cat", "dog", "sat", "on", "mat", "runs", "query", "passage", "un", "##able")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = string.ascii_lowercase + string.digits + ".,:!?"
VOCABULARY = (*SPECIAL, *LETTERS, *("##" + letter for letter in string.ascii_lowercase), *WORDS)
HIDDEN_SIZE = 32
MAX_POSITIONS = 64

COMMON: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "sep_token_id": 3,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", {}),
    "roberta": ("RobertaConfig", {}),
    "xlm-roberta": ("XLMRobertaConfig", {}),
    "mpnet": ("MPNetConfig", {}),
    "distilbert": ("DistilBertConfig", {"dim": HIDDEN_SIZE, "hidden_dim": 48, "n_heads": 4}),
    "albert": ("AlbertConfig", {"embedding_size": 16}),
    "electra": ("ElectraConfig", {"embedding_size": 16}),
    "deberta-v2": ("DebertaV2Config", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "modernbert": (
        "ModernBertConfig",
        {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 2},
    ),
    "nomic_bert": ("NomicBertConfig", {}),
    "fnet": ("FNetConfig", {}),
    "xlnet": (
        "XLNetConfig",
        {"max_position_embeddings": None, "d_model": HIDDEN_SIZE, "n_layer": 2, "n_head": 4},
    ),
    "xmod": ("XmodConfig", {"languages": ["en_XX"], "default_language": "en_XX"}),
    "t5": ("T5Config", {"d_model": HIDDEN_SIZE, "d_ff": 48, "num_heads": 4, "d_kv": 8}),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 16}),
    "gemma3_text": (
        "Gemma3TextConfig",
        {"num_key_value_heads": 2, "head_dim": 16, "use_bidirectional_attention": True},
    ),
}


def tokenizer_backend() -> Backend:
    """A WordPiece vocabulary that puts `[CLS]` and `[SEP]` around a text."""
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    backend = Backend(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.add_special_tokens(list(SPECIAL))
    return backend


def tiny_encoder(family: str, **changes: Any) -> torch.nn.Module:
    """Return a float32 encoder in eval mode, with weights that are large enough to tell texts
    apart."""
    import transformers

    name, settings = FAMILIES[family]
    values = {**COMMON, **settings, **changes}
    values = {key: value for key, value in values.items() if value is not None}
    config = getattr(transformers, name)(**values)
    torch.manual_seed(0)
    auto = transformers.AutoModelForTextEncoding if family == "t5" else transformers.AutoModel
    module = auto.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
    return module


def save_encoder(folder: Path, family: str, **changes: Any) -> Path:
    """Save an encoder with its tokenizer and without any file of sentence-transformers."""
    folder.mkdir(parents=True)
    tiny_encoder(family, **changes).save_pretrained(folder)  # type: ignore[operator]
    tokenizer_backend().save(str(folder / "tokenizer.json"))
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": text for name, text in zip(names, SPECIAL, strict=True)}
    usual = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_POSITIONS}
    write_json(folder / "tokenizer_config.json", {**tokens, **usual})
    return folder


def save_embedder(
    folder: Path,
    family: str = "bert",
    *,
    pooling: Sequence[str] = ("mean",),
    normalize: bool = True,
    dense: Sequence[dict[str, Any]] = (),
    settings: dict[str, Any] | None = None,
    transformer: dict[str, Any] | None = None,
    include_prompt: bool = True,
    **changes: Any,
) -> Path:
    """Save an encoder with the files of sentence-transformers.

    `dense`: the settings of dense layers. `settings`: config_sentence_transformers.json.
    """
    save_encoder(folder, family, **changes)
    kinds = ["Transformer", "Pooling", *("Dense" for _ in dense), *(["Normalize"] * normalize)]
    modules = []
    for i, kind in enumerate(kinds):
        path = "" if i == 0 else f"{i}_{kind}"
        module = {"idx": i, "name": str(i), "path": path}
        modules.append({**module, "type": f"sentence_transformers.models.{kind}"})
        (folder / path).mkdir(exist_ok=True)
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", transformer or {"max_seq_length": 48})
    if settings is not None:
        write_json(folder / "config_sentence_transformers.json", settings)
    write_json(folder / "1_Pooling" / "config.json", pooling_config(pooling, include_prompt))
    size = HIDDEN_SIZE * len(pooling)
    for i, layer in enumerate(dense):
        size = save_dense(folder / f"{i + 2}_Dense", {"in_features": size, **layer})
    return folder


def pooling_config(pooling: Sequence[str], include_prompt: bool = True) -> dict[str, Any]:
    """The configuration of a pooling, in the form that has a key for each kind."""
    keys = {
        "cls": "cls_token",
        "mean": "mean_tokens",
        "max": "max_tokens",
        "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "weightedmean": "weightedmean_tokens",
        "lasttoken": "lasttoken",
    }
    modes = {f"pooling_mode_{key}": name in pooling for name, key in keys.items()}
    return {
        "word_embedding_dimension": HIDDEN_SIZE,
        **modes,
        "include_prompt": include_prompt,
    }


def save_dense(folder: Path, config: dict[str, Any]) -> int:
    """Save a dense layer. Returns the size of its output."""
    size, output = config["in_features"], config["out_features"]
    torch.manual_seed(output)
    weights = {"linear.weight": torch.randn(output, size) * 0.2}
    if config.get("bias", True):
        weights["linear.bias"] = torch.randn(output)
    if config.get("use_residual") and size != output:
        weights["residual.weight"] = torch.randn(output, size) * 0.2
    save_file(weights, str(folder / "model.safetensors"))
    activation = "torch.nn.modules.activation.Tanh"
    write_json(folder / "config.json", {"activation_function": activation, "bias": True, **config})
    return int(output)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
