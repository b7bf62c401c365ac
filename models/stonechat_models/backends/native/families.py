"""In what the compiled model families differ, beyond what a config.json says."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """Traits of the models of one `model_type`, and its defaults as transformers has them."""

    tied: bool = False
    """The embedding serves as head where the config does not say."""
    head_dim: int | None = None
    theta: float = 10000.0
    """Base of the rotary embedding."""
    activation: str = "silu"
    norm_offset: float = 0.0
    """What is added to the weights of norms before they multiply."""
    input_norms: bool = True
    """Attention and the feed-forward block read normed rows."""
    output_norms: bool = False
    """Their outputs are normed before they are added."""
    whole_norms: bool = False
    """Queries and keys are normed over all heads at once, and not head by head."""
    window_needs_flag: bool = False
    """A `sliding_window` counts only with `use_sliding_window`."""
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
    """Constant factors, and soft caps (0: none): x becomes cap * tanh(x / cap)."""

    attention: float
    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0


def read_scales(config: dict[str, Any], model_type: str, head_dim: int) -> Scales:
    """As the model's class in transformers computes them, in float32."""
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
    if model_type == "gemma3_text":  # its attention reads no cap of the scores
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
    """A mixture: how many experts, how many of them a token goes to, and their size."""

    count: int
    per_token: int
    size: int
    scale_chosen: bool
    """The chosen experts' weights add up to one."""
    layers: tuple[bool, ...]
    """Which layers have experts."""


def read_experts(config: dict[str, Any], model_type: str, num_layers: int) -> Experts | None:
    """None for a family without experts."""
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
    # transformers writes num_experts under its common name.
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
