"""Encoders: models for embeddings, and for scores of pairs of texts."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from stonechat_models.checkpoint.gguf.architecture import Architecture
from stonechat_models.checkpoint.gguf.metadata import (
    Config,
    integer,
    positive,
    ranks,
    refusal,
    window_types,
)
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.gguf.rope import rope_of

HEAD = "cls.output.weight"
TYPES = "token_types.weight"
GLOBAL_THETA, LOCAL_THETA, MODERN_PERIOD = 160_000.0, 10_000.0, 3
MODERN_ACTIVATIONS = ("gelu", "silu")


def _labels(gguf: GgufFile) -> dict[str, str]:
    """Return names for the numbers that a head makes."""
    head = gguf.tensors.get(HEAD)
    if head is None or len(head.shape) != 2:
        raise refusal(gguf, f"{HEAD} is missing or not a matrix")
    return {str(i): f"LABEL_{i}" for i in range(head.shape[0])}


def _num_types(gguf: GgufFile) -> int:
    return gguf.tensors[TYPES].shape[0] if TYPES in gguf.tensors else 1


def _no_types(gguf: GgufFile) -> Iterable[tuple[str, np.ndarray]]:
    """Yield the types of tokens of a model without any, such as DistilBERT."""
    if TYPES not in gguf.tensors:
        size = integer(gguf, "embedding_length")
        name = "bert.embeddings.token_type_embeddings.weight"
        yield name, np.zeros((1, size), np.float32)


def _bert_ranks(gguf: GgufFile, config: Config) -> None:
    if "cls.weight" not in gguf.tensors or TYPES not in gguf.tensors:
        raise refusal(gguf, "its head for scores is not that of RoBERTa")
    config["id2label"] = _labels(gguf)


def _modern_bert(gguf: GgufFile, config: Config) -> None:
    activation = gguf.value("hidden_activation") or MODERN_ACTIVATIONS[0]
    if activation not in MODERN_ACTIVATIONS:
        raise refusal(gguf, f"its hidden_activation is {activation}")
    del config["hidden_act"]
    config["hidden_activation"] = activation
    config["local_attention"] = integer(gguf, "attention.sliding_window", 128)
    config["layer_types"] = window_types(gguf, MODERN_PERIOD, is_first_full=True)
    full = {**rope_of(gguf), "rope_theta": positive(gguf, "rope.freq_base", GLOBAL_THETA)}
    local = {**full, "rope_theta": positive(gguf, "rope.freq_base_swa", LOCAL_THETA)}
    config["rope_parameters"] = {"full_attention": full, "sliding_attention": local}


def _modern_bert_ranks(gguf: GgufFile, config: Config) -> None:
    _modern_bert(gguf, config)
    config["id2label"] = _labels(gguf)
    config["classifier_pooling"] = "mean"  # as llama.cpp does, whose files do not say
    config["classifier_bias"] = "cls.bias" in gguf.tensors


_TOP = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
}
_BERT = Architecture(
    "bert",
    "BertModel",
    keys={"type_vocab_size": _num_types},
    fixed={"hidden_act": "gelu"},
    is_encoder=True,
    eps="layer_norm_eps",
    layer_norm=True,
    names={
        "attn_q": "attention.self.query",
        "attn_k": "attention.self.key",
        "attn_v": "attention.self.value",
        "attn_output": "attention.output.dense",
        "attn_output_norm": "attention.output.LayerNorm",
        "ffn_up": "intermediate.dense",
        "ffn_down": "output.dense",
        "layer_output_norm": "output.LayerNorm",
    },
    top_names={
        **{name: f"bert.{target}" for name, target in _TOP.items()},
        "position_embd": "bert.embeddings.position_embeddings",
        "cls": "bert.pooler.dense",
        "cls.output": "classifier",
    },
    extra=_no_types,
    layer_prefix="bert.encoder.layer",
)
"""RoBERTa, XLM-RoBERTa and DistilBERT too: without the positions that RoBERTa leaves free, which no
file has, they compute the same, and RoBERTa's head for scores is BERT's."""
_NOMIC = Architecture(
    "nomic_bert",
    "NomicBertModel",
    keys={"type_vocab_size": _num_types},
    is_encoder=True,
    eps="layer_norm_eps",
    layer_norm=True,
    names={
        "attn_qkv": "attn.Wqkv",
        "attn_output_norm": "post_attention_layernorm",
        "layer_output_norm": "post_mlp_layernorm",
    },
    top_names=_TOP,
    layer_prefix="layers",
)
_MODERN = Architecture(
    "modernbert",
    "ModernBertModel",
    adapt=_modern_bert,
    is_encoder=True,
    eps="norm_eps",
    layer_norm=True,
    names={
        "attn_norm": "attn_norm",
        "attn_qkv": "attn.Wqkv",
        "attn_output": "attn.Wo",
        "ffn_norm": "mlp_norm",
        "ffn_up": "mlp.Wi",
        "ffn_down": "mlp.Wo",
    },
    top_names={
        "token_embd": "model.embeddings.tok_embeddings",
        "token_embd_norm": "model.embeddings.norm",
        "output_norm": "model.final_norm",
        "cls": "head.dense",
        "cls.norm": "head.norm",
        "cls.output": "classifier",
    },
)
ENCODERS: dict[str, Architecture] = {
    "bert": replace(
        _BERT,
        variants=(
            (ranks, replace(_BERT, class_name="BertForSequenceClassification", adapt=_bert_ranks)),
        ),
    ),
    "nomic-bert": _NOMIC,
    "jina-bert-v3": replace(
        _NOMIC,
        model_type="jina_embeddings_v3",
        class_name="JinaEmbeddingsV3Model",
        fixed={"hidden_act": "gelu"},
        names={
            **_NOMIC.names,
            "attn_qkv": "mixer.Wqkv",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
        },
    ),
    "modern-bert": replace(
        _MODERN,
        variants=(
            (
                ranks,
                replace(
                    _MODERN,
                    class_name="ModernBertForSequenceClassification",
                    adapt=_modern_bert_ranks,
                ),
            ),
        ),
    ),
    "eurobert": Architecture(
        "eurobert",
        "EuroBertModel",
        fixed={"attention_bias": False, "mlp_bias": False},
        is_encoder=True,
    ),
}
"""The entries by `general.architecture`."""
