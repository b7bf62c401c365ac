"""Turns a GGUF file's metadata into a transformers config, for the architectures listed here.

A file that such a config cannot describe exactly (an unknown architecture, another RoPE scaling,
heads that differ per layer) is refused with `UnsupportedModelError`, since the model would run and
be wrong. The metadata keys are those of the GGUF specification. Nothing relies on the defaults of
the model classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufValue
from stonechat_models.checkpoint.hf_config import MAX_EXPERTS, MAX_LAYERS, MAX_SIZE
from stonechat_models.errors import UnsupportedModelError

Config = dict[str, Any]

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")
MAX_FLOAT32 = float(np.finfo(np.float32).max)
LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_CONTEXT = 1.0, 4.0, 8192
GEMMA2_27B_LAYERS, GEMMA3_27B_LAYERS = 46, 62
GEMMA3_LOCAL_THETA, GEMMA3_PATTERN = 10000.0, 6


@dataclass(frozen=True, slots=True)
class Architecture:
    """How transformers names and configures one ggml architecture."""

    model_type: str
    class_name: str
    adapt: Callable[[GgufFile, Config], None]
    permuted_rope: bool = False
    """The file stores query and key rows in the order of interleaved RoPE pairs."""
    norm_offset: float = 0.0
    """The file's norm weights are larger than the module's by this much."""


def config_of(gguf: GgufFile) -> Config:
    """Return the content of config.json. Raises `UnsupportedModelError` if it cannot be exact."""
    architecture = architecture_of(gguf)
    vocab_size = _vocab_size(gguf)
    heads = _integer(gguf, "attention.head_count")
    hidden_size = _integer(gguf, "embedding_length")
    config: Config = {
        "model_type": architecture.model_type,
        "architectures": [architecture.class_name],
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": _integer(gguf, "block_count", limit=MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": _integer(gguf, "attention.head_count_kv", heads),
        "head_dim": _integer(gguf, "attention.key_length", max(1, hidden_size // heads)),
        "max_position_embeddings": _integer(gguf, "context_length"),
        "rms_norm_eps": _positive(gguf, "attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "rope_parameters": _rope(gguf),
        **{f"{name}_token_id": token_id for name, token_id in _named_tokens(gguf, vocab_size)},
    }
    if gguf.value("feed_forward_length") is not None:
        config["intermediate_size"] = _integer(gguf, "feed_forward_length")
    _check_heads(gguf, config)
    architecture.adapt(gguf, config)
    return config


def architecture_of(gguf: GgufFile) -> Architecture:
    """Return the entry of a file's architecture. Raises `UnsupportedModelError` if none exists."""
    if gguf.architecture not in ARCHITECTURES:
        supported = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModelError(
            f"{gguf.path.name}: GGUF files of architecture {gguf.architecture!r} are not "
            f"supported ({supported} are); try the model's safetensors files"
        )
    return ARCHITECTURES[gguf.architecture]


def eos_token_ids(gguf: GgufFile) -> list[int]:
    """Return the tokens that end an answer: the file's end tokens and its end-of-turn tokens."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    token_ids = [gguf.integer(f"tokenizer.ggml.{name}") for name in names]
    tokens = gguf.strings("tokenizer.ggml.tokens")
    types = gguf.metadata.get("tokenizer.ggml.token_type")
    special = {i for i, kind in enumerate(types) if kind != 1} if isinstance(types, list) else set()
    token_ids += [i for i in sorted(special) if i < len(tokens) and tokens[i] in END_OF_TURN]
    return list(dict.fromkeys(i for i in token_ids if i is not None))


def _vocab_size(gguf: GgufFile) -> int:
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise _refusal(gguf, "token_embd.weight is missing or not a matrix")
    return embedding.shape[0]


def _named_tokens(gguf: GgufFile, vocab_size: int) -> Iterator[tuple[str, int | None]]:
    """Yield the ids for config.json. All ids that the file names must be in its vocabulary."""
    in_config = {"bos": "bos", "eos": "eos", "padding": "pad"}
    for name in (*in_config, "eot", "eom", "unknown"):
        key = f"tokenizer.ggml.{name}_token_id"
        token_id = gguf.integer(key)
        if token_id is not None and not 0 <= token_id < vocab_size:
            raise _refusal(gguf, f"{key} is {token_id}, and it has {vocab_size} tokens")
        if name in in_config:
            yield in_config[name], token_id


def _refusal(gguf: GgufFile, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{gguf.path.name} ({gguf.architecture}) cannot be converted exactly; try the model's "
        f"safetensors files: {reason}"
    )


def _integer(gguf: GgufFile, key: str, default: int | None = None, limit: int = MAX_SIZE) -> int:
    value = gguf.value(key)
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        problem = "missing" if value is None else "not one integer above 0"
        raise _refusal(gguf, f"{key} is {problem}")
    if value > limit:
        raise _refusal(gguf, f"{key} is {value}, which is too large")
    return value


def _positive(gguf: GgufFile, key: str, default: float | None = None) -> float:
    value = _number(gguf, key, default)
    if value <= 0:
        raise _refusal(gguf, f"{key} is {value}, which is not a number above 0")
    return value


def _number(gguf: GgufFile, key: str, default: float | None = None) -> float:
    value: GgufValue | None = gguf.value(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refusal(gguf, f"{key} is missing or not a number")
    if not abs(value) <= MAX_FLOAT32:
        raise _refusal(gguf, f"{key} is {value}, which is not a finite number")
    # The file stores a float32. Its shortest decimal is what the model's author wrote.
    return float(str(np.float32(value)))


def _check_heads(gguf: GgufFile, config: Config) -> None:
    head_dim = config["head_dim"]
    if gguf.tensors["token_embd.weight"].shape[1] != config["hidden_size"]:
        raise _refusal(gguf, "embedding_length is not the size of its embeddings")
    for name, count in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
        projection = gguf.tensors.get(f"blk.0.attn_{name}.weight")
        if projection is not None and projection.shape[0] != config[count] * head_dim:
            raise _refusal(gguf, f"attn_{name} does not have the rows of {config[count]} heads")
    if gguf.value("attention.value_length") not in (None, head_dim):
        raise _refusal(gguf, "the head sizes of keys and values differ")
    rotary_dim = _integer(gguf, "rope.dimension_count", head_dim)
    if rotary_dim > head_dim or rotary_dim % 2:
        raise _refusal(gguf, f"RoPE covers {rotary_dim} dimensions of heads of size {head_dim}")
    if gguf.architecture != "phi3" and rotary_dim != head_dim:
        raise _refusal(gguf, "RoPE covers only a part of each head")


def _rope(gguf: GgufFile) -> Config:
    theta = _positive(gguf, "rope.freq_base", 10000.0)
    kind = gguf.value("rope.scaling.type")
    if "rope_freqs.weight" in gguf.tensors:
        return {"rope_theta": theta, **_llama3_rope(gguf, theta)}
    if any(name.startswith("rope_factors") for name in gguf.tensors):
        raise _refusal(gguf, "RoPE scaling with factors for long contexts is not supported")
    if kind in (None, "none"):
        return {"rope_theta": theta, "rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise _refusal(gguf, f"RoPE scaling of type {kind} is not supported")
    rope: Config = {"rope_theta": theta, "rope_type": kind}
    rope["factor"] = _positive(gguf, "rope.scaling.factor")
    if kind == "yarn":
        rope["original_max_position_embeddings"] = _integer(
            gguf, "rope.scaling.original_context_length"
        )
    return rope


def _llama3_rope(gguf: GgufFile, theta: float) -> Config:
    """Recover Llama 3's RoPE scaling from the divisors in the file, and check them."""
    tensor = gguf.tensors["rope_freqs.weight"]
    if tensor.type_name != "F32":
        raise _refusal(gguf, "its RoPE frequencies are not float32")
    divisors = tensor.data.view(np.float32).astype(np.float64).reshape(-1)
    factor = float(divisors.max())
    if not (divisors.min() > 0 and factor <= MAX_FLOAT32):
        raise _refusal(gguf, "its RoPE frequencies are not finite numbers above 0")
    wavelengths = 2 * np.pi * theta ** (np.arange(divisors.size) / divisors.size)
    smooth = (LLAMA3_CONTEXT / wavelengths - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW)
    smooth = np.clip(smooth, 0.0, 1.0)
    if not np.allclose(divisors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise _refusal(gguf, "its RoPE frequencies are not those of Llama 3's scaling")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW,
        "high_freq_factor": LLAMA3_HIGH,
        "original_max_position_embeddings": LLAMA3_CONTEXT,
    }


def _llama(gguf: GgufFile, config: Config) -> None:
    if gguf.value("expert_count"):
        raise _refusal(gguf, "mixtures of experts of the llama architecture are not supported")
    config["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
    config["mlp_bias"] = "blk.0.ffn_up.bias" in gguf.tensors


def _qwen2(gguf: GgufFile, config: Config) -> None:
    config["use_sliding_window"] = False


def _qwen3(gguf: GgufFile, config: Config) -> None:
    config["use_sliding_window"] = False
    config["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors


def _qwen3_moe(gguf: GgufFile, config: Config) -> None:
    _qwen3(gguf, config)
    config["moe_intermediate_size"] = _integer(gguf, "expert_feed_forward_length")
    config["num_experts"] = _integer(gguf, "expert_count", limit=MAX_EXPERTS)
    config["num_experts_per_tok"] = _integer(gguf, "expert_used_count")
    config.update(norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[])


def _phi3(gguf: GgufFile, config: Config) -> None:
    head_dim, rope = config["head_dim"], config["rope_parameters"]
    rope["partial_rotary_factor"] = _integer(gguf, "rope.dimension_count", head_dim) / head_dim
    has_window = gguf.value("attention.sliding_window")
    config["sliding_window"] = _integer(gguf, "attention.sliding_window") if has_window else None
    config["original_max_position_embeddings"] = config["max_position_embeddings"]


def _gemma(gguf: GgufFile, config: Config, num_layers_27b: int) -> None:
    heads, hidden_size = config["num_attention_heads"], config["hidden_size"]
    is_27b = config["num_hidden_layers"] == num_layers_27b
    config["query_pre_attn_scalar"] = hidden_size // heads if is_27b else config["head_dim"]
    del config["hidden_act"]
    config["hidden_activation"] = "gelu_pytorch_tanh"
    config["sliding_window"] = _integer(gguf, "attention.sliding_window")
    config["attention_bias"] = False


def _layer_types(config: Config, period: int) -> list[str]:
    layers = range(config["num_hidden_layers"])
    return ["sliding_attention" if (i + 1) % period else "full_attention" for i in layers]


def _gemma2(gguf: GgufFile, config: Config) -> None:
    _gemma(gguf, config, GEMMA2_27B_LAYERS)
    config["layer_types"] = _layer_types(config, 2)
    config["attn_logit_softcapping"] = _positive(gguf, "attn_logit_softcapping", 50.0)
    config["final_logit_softcapping"] = _positive(gguf, "final_logit_softcapping", 30.0)


def _gemma3_layer_types(gguf: GgufFile, config: Config) -> list[str]:
    """Return the type of each layer.

    Newer files say which layers have a sliding window: by a period, or by one flag per layer.
    """
    pattern = gguf.value("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        types = ["sliding_attention" if flag else "full_attention" for flag in pattern]
        if len(types) != config["num_hidden_layers"]:
            raise _refusal(gguf, "it does not have one sliding-window flag per layer")
        return types
    return _layer_types(config, _integer(gguf, "attention.sliding_window_pattern", GEMMA3_PATTERN))


def _gemma3(gguf: GgufFile, config: Config) -> None:
    _gemma(gguf, config, GEMMA3_27B_LAYERS)
    config["layer_types"] = _gemma3_layer_types(gguf, config)
    config.update(attn_logit_softcapping=None, final_logit_softcapping=None)
    theta = _positive(gguf, "rope.freq_base_swa", GEMMA3_LOCAL_THETA)
    local = {"rope_type": "default", "rope_theta": theta}
    full = _rope(gguf)
    if gguf.value("rope.freq_base") is None:
        full["rope_theta"] = 1e6
    config["rope_parameters"] = {"sliding_attention": local, "full_attention": full}


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM", _llama, permuted_rope=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _qwen2),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _qwen3),
    "qwen3moe": Architecture("qwen3_moe", "Qwen3MoeForCausalLM", _qwen3_moe),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", _phi3),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _gemma2, norm_offset=1.0),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", _gemma3, norm_offset=1.0),
}
