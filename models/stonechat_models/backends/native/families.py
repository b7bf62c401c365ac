"""How the model families of the native backend differ, beyond what a config.json says."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """Traits of one `model_type`. The defaults for absent config keys are those of transformers."""

    tied: bool = False
    """Whether the embedding also serves as the head if the config does not say."""
    head_dim: int | None = None
    theta: float = 10000.0
    """Base of the rotary embedding if the config has none."""
    activation: str = "silu"
    norm_offset: float = 0.0
    """An offset that is added to the weights of norms before they multiply."""
    input_norms: bool = True
    """The inputs of attention and of the feed-forward block are normed."""
    output_norms: bool = False
    """The outputs of attention and of the feed-forward block are normed before they are added."""
    whole_norms: bool = False
    """The norms of queries and keys, if any, span all heads at once instead of one head."""
    window_needs_flag: bool = False
    """`sliding_window` counts only if `use_sliding_window` is set."""
    has_experts: bool = False


_GEMMA = Family(tied=True, head_dim=256, activation="gelu_pytorch_tanh", norm_offset=1.0)
_GEMMA2 = replace(_GEMMA, output_norms=True)
FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(window_needs_flag=True),
    "qwen3": Family(window_needs_flag=True),
    "smollm3": Family(tied=True, theta=2e6, window_needs_flag=True),
    "phi3": Family(),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, theta=1e6),
    "granite": Family(),
    "olmo2": Family(input_norms=False, output_norms=True, whole_norms=True),
    "qwen3_moe": Family(window_needs_flag=True, has_experts=True),
    "mixtral": Family(theta=1e6, has_experts=True),
}


@dataclass(frozen=True, slots=True)
class Scales:
    """Constant factors, and soft caps. A cap replaces x by cap * tanh(x / cap); 0 means no cap."""

    attention: float
    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0


def read_scales(config: dict[str, Any], model_type: str, head_dim: int) -> Scales:
    """Return the scales that the model's class in transformers computes when it runs in float32."""
    if model_type == "granite":
        return Scales(
            attention=float(config.get("attention_multiplier", 1.0)),
            embedding=float(config.get("embedding_multiplier", 1.0)),
            residual=float(config.get("residual_multiplier", 1.0)),
            logits=1.0 / float(config.get("logits_scaling", 1.0)),
        )
    if not model_type.startswith("gemma"):
        return Scales(attention=head_dim**-0.5)
    embedding = float(config["hidden_size"]) ** 0.5
    if model_type == "gemma":
        return Scales(attention=head_dim**-0.5, embedding=embedding)
    scalar = float(config.get("query_pre_attn_scalar", 256))
    if model_type == "gemma3_text":  # its attention does not cap the scores
        cap = float(config.get("final_logit_softcapping") or 0.0)
        return Scales(attention=scalar**-0.5, embedding=embedding, logit_cap=cap)
    return Scales(
        attention=scalar**-0.5,
        embedding=embedding,
        attention_cap=float(config.get("attn_logit_softcapping", 50.0) or 0.0),
        logit_cap=float(config.get("final_logit_softcapping", 30.0) or 0.0),
    )


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture: the number of experts, the number per token, and an expert's inner size."""

    count: int
    per_token: int
    size: int
    scale_chosen: bool
    """Whether the weights of a token's experts are scaled to add up to one."""
    layers: tuple[bool, ...]
    """For each layer: whether it has experts."""


def read_experts(config: dict[str, Any], model_type: str, num_layers: int) -> Experts | None:
    """Return the mixture that the config describes, or None for a family without experts."""
    if not FAMILIES[model_type].has_experts:
        return None
    if model_type == "mixtral":
        return Experts(
            count=int(config.get("num_local_experts", 8)),
            per_token=int(config.get("num_experts_per_tok", 2)),
            size=int(config["intermediate_size"]),
            scale_chosen=True,
            layers=(True,) * num_layers,
        )
    # transformers saves num_experts as num_local_experts, the name that all its mixtures share.
    count = int(config.get("num_local_experts", config.get("num_experts", 128)))
    step = int(config.get("decoder_sparse_step", 1))
    dense = set(config.get("mlp_only_layers") or [])
    return Experts(
        count=count,
        per_token=int(config.get("num_experts_per_tok", 8)),
        size=int(config.get("moe_intermediate_size", 768)),
        scale_chosen=bool(config.get("norm_topk_prob", False)),
        layers=tuple(
            i not in dense and count > 0 and (i + 1) % step == 0 for i in range(num_layers)
        ),
    )
