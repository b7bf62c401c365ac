"""What llama.cpp's converter writes for encoders, and tiny random ones of transformers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import torch

from tests.models.converted_parameters import Config
from tests.models.tiny_embedders import SPECIAL, VOCABULARY

COMMON: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "layer_norm_eps": 1e-6,
}
_SHIFTED = {"pad_token_id": 1, "max_position_embeddings": 66, "type_vocab_size": 1}
_DISTIL = {"dim": 32, "hidden_dim": 64, "n_heads": 4, "n_layers": 3}
_GEMMA = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "use_bidirectional_attention": True,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
_MODERN = {
    "local_attention": 8,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "sep_token_id": 3,
    "cls_token_id": 2,
    "norm_eps": 1e-6,
    "classifier_pooling": "mean",
}
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "Bert", {"type_vocab_size": 2}),
    "xlm-roberta": ("bert", "XLMRoberta", _SHIFTED),
    "distilbert": ("bert", "DistilBert", _DISTIL),
    "nomic-bert": (
        "nomic-bert",
        "NomicBert",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}},
    ),
    "jina-bert-v3": (
        "jina-bert-v3",
        "JinaEmbeddingsV3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}},
    ),
    "modern-bert": ("modern-bert", "ModernBert", _MODERN),
    "modern-bert-silu": ("modern-bert", "ModernBert", {**_MODERN, "hidden_activation": "silu"}),
    "eurobert": (
        "eurobert",
        "EuroBert",
        {
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0},
        },
    ),
    "gemma-embedding": ("gemma-embedding", "Gemma3Text", _GEMMA),
}
"""The architecture, the beginning of the classes' names, and what config.json says."""


def tiny_encoder(name: str, kind: str = "Model", **changes: Any) -> Any:
    """Return a float32 model in eval mode, no two of whose weights are equal."""
    import transformers

    _, family, settings = ENCODERS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**COMMON, **settings, **changes})
    module = getattr(transformers, f"{family}{kind}")._from_config(config)
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if "norm" in key.lower() or key.startswith("emb_ln"):
                value.add_(torch.randn_like(value) * 0.2)
            else:
                value.normal_(0.0, 0.3 if value.dim() < 2 or kind != "Model" else 0.2)
    return module.float().eval()


def encoder(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_causal_attention(False)


def bert(writer: gguf.GGUFWriter, config: Config) -> None:
    encoder(writer, config)
    if config["model_type"] == "distilbert":
        writer.add_layer_norm_eps(1e-12)
        writer.add_embedding_length(config["dim"])
        writer.add_feed_forward_length(config["hidden_dim"])
    if config["model_type"] == "xlm-roberta":
        key = "bert.context_length"
        writer.kv_data[0].pop(key)
        writer.add_context_length(config["max_position_embeddings"] - 1 - config["pad_token_id"])


def modern_bert(writer: gguf.GGUFWriter, config: Config) -> None:
    encoder(writer, config)
    writer.add_sliding_window(config["local_attention"])
    writer.add_sliding_window_pattern(2)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    if config["hidden_activation"] != "gelu":
        writer.add_string("modern-bert.hidden_activation", config["hidden_activation"])


def gemma_embedding(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern(3)


ENCODER_PARAMETERS: dict[str, Callable[[gguf.GGUFWriter, Config], None]] = {
    "bert": bert,
    "nomic-bert": encoder,
    "jina-bert-v3": encoder,
    "modern-bert": modern_bert,
    "eurobert": encoder,
    "gemma-embedding": gemma_embedding,
}
PREFIXES = ("bert.", "roberta.", "distilbert.", "model.")


def plain(
    name: str, tensor: torch.Tensor, config: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    if name.startswith("pooler.dense"):
        return
    if name == "embeddings.position_embeddings.weight" and config["model_type"] == "xlm-roberta":
        tensor = tensor[1 + config["pad_token_id"] :]
    if name in ("classifier.weight", "classifier.bias"):
        name = name.replace("classifier.", "classifier.out_proj.")
    is_gemma = config["model_type"].startswith("gemma") and name.endswith("norm.weight")
    yield name, tensor + 1 if is_gemma else tensor


ENCODER_CHANGES = dict.fromkeys(ENCODER_PARAMETERS, plain)


def add_word_pieces(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """Write the vocabulary of the tiny embedders as llama.cpp writes BERT's."""
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list([t if t in SPECIAL else phantom(t) for t in VOCABULARY])
    writer.add_token_types([control if t in SPECIAL else normal for t in VOCABULARY])
    writer.add_token_type_count(2)
    for name, token in zip(("pad", "unk", "bos", "sep", "mask"), SPECIAL, strict=True):
        getattr(writer, f"add_{name}_token_id")(VOCABULARY.index(token))


def phantom(token: str) -> str:
    return token[2:] if token.startswith("##") else f"\u2581{token}"


def write_encoder(
    module: Any,
    name: str,
    path: Path,
    pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN,
    kind: gguf.GGMLQuantizationType | None = None,
    add_more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    add_tokens: Callable[[gguf.GGUFWriter, int], None] = add_word_pieces,
) -> Path:
    """Write an encoder as a file that names a pooling. Matrices are `kind`, else float32."""
    from tests.models.converted_gguf import write_converted

    def add_rest(writer: gguf.GGUFWriter, vocab_size: int) -> None:
        add_tokens(writer, vocab_size)
        if pooling is not None:
            writer.add_pooling_type(pooling)
        add_more(writer)

    return write_converted(module, ENCODERS[name][0], path, kind, add_rest)
