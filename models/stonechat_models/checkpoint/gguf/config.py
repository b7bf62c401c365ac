"""Turns a GGUF file's metadata into a transformers config, for the architectures of the tables.

A file that such a config cannot describe exactly (an unknown architecture, another RoPE scaling,
heads that differ per layer) is refused with `UnsupportedModelError`, since the model would run and
be wrong. The metadata keys are those of the GGUF specification. Nothing relies on the defaults of
the model classes where published models differ in them.
"""

from collections.abc import Iterator
from dataclasses import replace

from stonechat_models.checkpoint.gguf.architecture import EFFECTS, Architecture
from stonechat_models.checkpoint.gguf.architectures.dense import DENSE
from stonechat_models.checkpoint.gguf.architectures.encoders import ENCODERS
from stonechat_models.checkpoint.gguf.architectures.experts import MIXTRAL, MIXTURES
from stonechat_models.checkpoint.gguf.architectures.gemma import GEMMA
from stonechat_models.checkpoint.gguf.architectures.latent import LATENT
from stonechat_models.checkpoint.gguf.architectures.layer_norms import LAYER_NORMS
from stonechat_models.checkpoint.gguf.architectures.linear_attention import LINEAR_ATTENTION
from stonechat_models.checkpoint.gguf.architectures.own_experts import OWN_EXPERTS
from stonechat_models.checkpoint.gguf.architectures.state_spaces import STATE_SPACES
from stonechat_models.checkpoint.gguf.metadata import (
    Config,
    flag,
    integer,
    num_blocks,
    per_layer,
    positive,
    ranks,
    refusal,
)
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.errors import ModelLoadError, UnsupportedModelError

END_OF_TURN = frozenset(
    (
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>", "<end_of_turn>"),
        *("<|end|>", "<|endoftext|>", "<|end_of_text|>", "<turn|>", "<|tool_response>"),
        *("<|observation|>", "[e~["),
    )
)
"""Tokens that end an answer in some family, and have no other use in any, but for `HARMONY`."""
HARMONY = frozenset({"<|return|>", "<|call|>"})
"""Where these end an answer, `<|end|>` ends only one of its messages."""
# Mixtures of experts of Mixtral's kind are named `llama` too.
_LLAMA = replace(
    DENSE["llama"], variants=((lambda gguf: bool(gguf.value("expert_count")), MIXTRAL),)
)
ARCHITECTURES: dict[str, Architecture] = {
    **DENSE,
    **LAYER_NORMS,
    **GEMMA,
    **ENCODERS,
    **MIXTURES,
    **LATENT,
    **OWN_EXPERTS,
    **LINEAR_ATTENTION,
    **STATE_SPACES,
    "llama": _LLAMA,
}
"""The entries by `general.architecture`."""
OTHER_KINDS = {
    "mmproj": "the vision or audio part of a model",
    "adapter": "a LoRA adapter",
    "imatrix": "a record of activations",
}
"""What files are that are no models, by `general.type`."""
SEEING = frozenset(
    {"gemma3", "gemma4", "mistral3", "qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe"}
)
"""Architectures of models whose folders may have a vision tower."""
CLASSIFIER = "ForSequenceClassification"
"""How the names of classes end whose models have a head for scores."""


def config_of(gguf: GgufFile) -> Config:
    """Return the content of config.json. Raises `UnsupportedModelError` if it cannot be exact."""
    _refuse_other_files(gguf)
    architecture = architecture_of(gguf)
    vocab_size = _vocab_size(gguf)
    heads = _heads(gguf, "attention.head_count")
    hidden_size = integer(gguf, "embedding_length")
    eps_key = "layer_norm_epsilon" if architecture.layer_norm else "layer_norm_rms_epsilon"
    config: Config = {
        "model_type": architecture.model_type,
        "architectures": [architecture.class_name],
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_blocks(gguf),
        "num_attention_heads": heads,
        "num_key_value_heads": _heads(gguf, "attention.head_count_kv", heads),
        "head_dim": integer(gguf, "attention.key_length", max(1, hidden_size // max(1, heads))),
        "max_position_embeddings": integer(gguf, "context_length"),
        architecture.eps: positive(gguf, f"attention.{eps_key}"),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "rope_parameters": architecture.rope(gguf),
        **{f"{name}_token_id": token_id for name, token_id in _named_tokens(gguf, vocab_size)},
    }
    sizes = gguf.value("feed_forward_length")
    if sizes is not None and not (architecture.own_heads and isinstance(sizes, list)):
        config["intermediate_size"] = integer(
            gguf, "feed_forward_length", least=0 if architecture.own_heads else 1
        )
    _check_embedding(gguf, config)
    _check_effects(gguf, architecture)
    _check_pooling(gguf, architecture)
    if not architecture.own_heads:
        _check_heads(gguf, config, architecture.partial_rope)
    config |= architecture.fixed
    config |= {key: read(gguf) for key, read in architecture.keys.items()}
    architecture.adapt(gguf, config)
    _check_experts(gguf, config)
    return config


def _refuse_other_files(gguf: GgufFile) -> None:
    """Raise `ModelLoadError` for a file that is only a part of a model, or is about one."""
    kind = gguf.metadata.get("general.type", "model")
    kind = "mmproj" if gguf.architecture == "clip" else kind
    if isinstance(kind, str) and kind in OTHER_KINDS:
        raise ModelLoadError(
            f"{gguf.path} is {OTHER_KINDS[kind]}, not a model; name the model's file"
        )


def architecture_of(gguf: GgufFile) -> Architecture:
    """Return the entry of a file's architecture. Raises `UnsupportedModelError` if none exists."""
    if gguf.architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{gguf.path.name}: GGUF files of architecture {gguf.architecture!r} are not "
            "supported; the same model as a folder of safetensors files may work"
        )
    entry = ARCHITECTURES[gguf.architecture]
    return next((variant for holds, variant in entry.variants if holds(gguf)), entry)


def eos_token_ids(gguf: GgufFile) -> list[int]:
    """Return the tokens that end an answer: the file's end tokens and its end-of-turn tokens."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    token_ids = [gguf.integer(f"tokenizer.ggml.{name}") for name in names]
    tokens = gguf.strings("tokenizer.ggml.tokens")
    types = gguf.metadata.get("tokenizer.ggml.token_type")
    ends = (END_OF_TURN - {"<|end|>"}) | HARMONY if {*tokens} >= HARMONY else END_OF_TURN
    kinds = types if isinstance(types, list) else []
    token_ids += [
        i
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind != 1 and token in ends
    ]
    return list(dict.fromkeys(i for i in token_ids if i is not None))


def _vocab_size(gguf: GgufFile) -> int:
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise refusal(gguf, "token_embd.weight is missing or not a matrix")
    return embedding.shape[0]


def _named_tokens(gguf: GgufFile, vocab_size: int) -> Iterator[tuple[str, int | None]]:
    """Yield the ids for config.json. All ids that the file names must be in its vocabulary."""
    in_config = {"bos": "bos", "eos": "eos", "padding": "pad"}
    for name in (*in_config, "eot", "eom", "unknown"):
        key = f"tokenizer.ggml.{name}_token_id"
        token_id = gguf.integer(key)
        if token_id is not None and not 0 <= token_id < vocab_size:
            raise refusal(gguf, f"{key} is {token_id}, and it has {vocab_size} tokens")
        if name in in_config:
            yield in_config[name], token_id


def _heads(gguf: GgufFile, key: str, default: int | None = None) -> int:
    """Return the number of heads. Architectures with `own_heads` may have another in each layer."""
    own = architecture_of(gguf).own_heads
    if isinstance(gguf.value(key), list) and own:
        return max(*per_layer(gguf, key), 0)
    return integer(gguf, key, default, least=0 if own else 1)


def _check_embedding(gguf: GgufFile, config: Config) -> None:
    if gguf.tensors["token_embd.weight"].shape[1] != config["hidden_size"]:
        raise refusal(gguf, "embedding_length is not the size of its embeddings")


def _check_effects(gguf: GgufFile, architecture: Architecture) -> None:
    causal = {"attention.causal": (not architecture.is_encoder,)}
    for key, neutral in (EFFECTS | causal).items():
        value = gguf.value(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if key not in architecture.effects and any(item not in neutral for item in values):
            raise refusal(gguf, f"models of this architecture with {key} are not supported")
    gating = integer(gguf, "expert_gating_func", 0, least=0)
    if gating not in (0, architecture.gating):
        raise refusal(gguf, f"expert_gating_func is {gating}, and not {architecture.gating}")


def _check_pooling(gguf: GgufFile, architecture: Architecture) -> None:
    is_classifier = architecture.class_name.endswith(CLASSIFIER)
    if architecture.is_encoder and ranks(gguf) and not is_classifier:
        raise refusal(gguf, "encoders of this architecture that rank texts are not supported")


def _check_experts(gguf: GgufFile, config: Config) -> None:
    """Refuse experts that the module would choose or weigh in another way than the file says."""
    if gguf.value("expert_count") is None:
        return
    is_normed = config.get("norm_topk_prob")
    if is_normed is not None and flag(gguf, "expert_weights_norm", is_normed) != is_normed:
        raise refusal(gguf, f"expert_weights_norm is not {is_normed}")
    if integer(gguf, "expert_group_count", 1, least=0) > 1 and "n_group" not in config:
        raise refusal(gguf, "its experts are in groups")


def _check_heads(gguf: GgufFile, config: Config, partial_rope: bool) -> None:
    head_dim = config["head_dim"]
    for name, count in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
        projection = gguf.tensors.get(f"blk.0.attn_{name}.weight")
        if projection is not None and projection.shape[0] != config[count] * head_dim:
            raise refusal(gguf, f"attn_{name} does not have the rows of {config[count]} heads")
    if gguf.value("attention.value_length") not in (None, head_dim):
        raise refusal(gguf, "the head sizes of keys and values differ")
    rotary_dim = integer(gguf, "rope.dimension_count", head_dim)
    if rotary_dim > head_dim or rotary_dim % 2:
        raise refusal(gguf, f"RoPE covers {rotary_dim} dimensions of heads of size {head_dim}")
    if partial_rope:
        config["rope_parameters"]["partial_rotary_factor"] = rotary_dim / head_dim
    elif rotary_dim != head_dim:
        raise refusal(gguf, "RoPE covers only a part of each head")
