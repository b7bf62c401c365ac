"""How the model families of the native backend differ.

The defaults for absent config keys are those of transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from stonechat_models.backends.native.rope import LOCAL
from stonechat_models.checkpoint.hf_config import HFConfig

QKV, ATTENTION = frozenset("qkv"), frozenset("qkvo")
FEED_FORWARD = frozenset(("gate", "up", "down"))


@dataclass(frozen=True, slots=True)
class Scales:
    """Constant factors, and soft caps. A cap replaces x by cap * tanh(x / cap); 0 means no cap."""

    attention: float
    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0


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


def _granite_scales(config: HFConfig, head_dim: int) -> Scales:
    names = ("attention_multiplier", "embedding_multiplier", "residual_multiplier")
    attention, embedding, residual = (config.keys.read(name, float, 1.0) for name in names)
    logits = 1.0 / config.keys.positive("logits_scaling", float, 1.0)
    return Scales(attention, embedding, residual, logits)


def _gemma_scales(config: HFConfig, head_dim: int) -> Scales:
    return Scales(head_dim**-0.5, embedding=config.hidden_size**0.5)


def _gemma2_scales(config: HFConfig, head_dim: int) -> Scales:
    def cap(key: str, default: float) -> float:
        return 0.0 if config.keys.is_null(key) else config.keys.positive(key, float, default)

    caps = cap("attn_logit_softcapping", 50.0), cap("final_logit_softcapping", 30.0)
    scales = _gemma3_scales(config, head_dim)
    return replace(scales, attention_cap=caps[0], logit_cap=caps[1])


def _gemma3_scales(config: HFConfig, head_dim: int) -> Scales:
    """Its attention does not cap the scores."""
    scalar = config.keys.positive("query_pre_attn_scalar", float, 256.0)
    cap = config.keys.positive("final_logit_softcapping", float, 0.0)
    return Scales(scalar**-0.5, embedding=config.hidden_size**0.5, logit_cap=cap)


def _mixtral_experts(config: HFConfig) -> Experts:
    return Experts(
        count=config.keys.size("num_local_experts", 8),
        per_token=config.keys.read("num_experts_per_tok", int, 2),
        size=config.keys.positive("intermediate_size", int),
        scale_chosen=True,
        layers=(True,) * config.num_layers,
    )


def _qwen3_experts(config: HFConfig) -> Experts:
    keys = config.keys
    # transformers saves num_experts as num_local_experts, the name that all its mixtures share.
    count = keys.read("num_local_experts", int, keys.read("num_experts", int, 128))
    step, dense = keys.size("decoder_sparse_step", 1), keys.read("mlp_only_layers", list[int], [])
    return Experts(
        count=count,
        per_token=keys.read("num_experts_per_tok", int, 8),
        size=keys.read("moe_intermediate_size", int, 768),
        scale_chosen=keys.read("norm_topk_prob", bool, False),
        layers=tuple(
            i not in dense and count > 0 and (i + 1) % step == 0 for i in range(config.num_layers)
        ),
    )


def _smollm3_is_rotary(config: HFConfig, layer: int) -> bool:
    flags = config.keys.read("no_rope_layers", list[int], [])
    interval = config.keys.read("no_rope_layer_interval", int, 4) or 4
    # 1: has a rotary embedding, despite the name.
    return bool(flags[layer]) if layer < len(flags) else (layer + 1) % interval != 0


def _flagged_biases(config: HFConfig) -> frozenset[str]:
    return ATTENTION if config.keys.read("attention_bias", bool, False) else frozenset()


def _llama_biases(config: HFConfig) -> frozenset[str]:
    has_mlp_biases = config.keys.read("mlp_bias", bool, False)
    return _flagged_biases(config) | (FEED_FORWARD if has_mlp_biases else frozenset())


Trait = Callable[[HFConfig, int], bool]
"""Whether the layer of this index has a trait."""


@dataclass(frozen=True, slots=True)
class Family:
    """Traits of one `model_type`."""

    tied: bool = False
    """Whether the embedding also serves as the head if the config does not say."""
    head_dim: int = 0
    """The size of a head if the config does not say; 0: the hidden size over the heads."""
    theta: float = 10000.0
    """Base of the rotary embedding if the config has none."""
    has_local_rope: bool = False
    """Layers with a sliding window have a rotary embedding of their own."""
    is_rotary: Trait = lambda config, layer: True
    """Whether a layer has a rotary embedding."""
    activation: str = "silu"
    activation_key: str = "hidden_act"
    norm_offset: float = 0.0
    """An offset that is added to the weights of norms before they multiply."""
    input_norms: bool = True
    """The inputs of attention and of the feed-forward block are normed."""
    output_norms: bool = False
    """The outputs of attention and of the feed-forward block are normed before they are added."""
    head_norms: bool = False
    """Queries and keys are normed."""
    whole_norms: bool = False
    """These norms span all heads at once instead of one head."""
    biases: Callable[[HFConfig], frozenset[str]] = lambda config: frozenset()
    """The projections that have a bias, by their names in `LayerStruct`."""
    merged: bool = False
    """The files merge q, k and v into one matrix, and gate and up into another."""
    has_windows: bool = True
    window: int = 0
    """The sliding window if the config does not say; 0: none."""
    window_needs_flag: bool = False
    """`sliding_window` counts only if `use_sliding_window` is set."""
    has_layer_types: bool = True
    """`layer_types` says which layers have a sliding window."""
    local: Trait = lambda config, layer: True
    """Whether a layer has a sliding window if the config has no `layer_types`."""
    scales: Callable[[HFConfig, int], Scales] = lambda config, head_dim: Scales(head_dim**-0.5)
    """The scales for a head size, as the class in transformers computes them in float32."""
    experts: Callable[[HFConfig], Experts] | None = None

    def is_local(self, config: HFConfig, layer: int) -> bool:
        """Whether the layer has a sliding window, if the model has one."""
        if config.layer_types and self.has_layer_types:
            return config.layer_types[layer] == LOCAL
        return self.local(config, layer)


_GEMMA = Family(
    tied=True,
    head_dim=256,
    activation="gelu_pytorch_tanh",
    norm_offset=1.0,
    has_windows=False,
    biases=_flagged_biases,
    scales=_gemma_scales,
)
_GEMMA2 = replace(
    _GEMMA,
    activation_key="hidden_activation",
    output_norms=True,
    has_windows=True,
    window=4096,
    local=lambda config, layer: layer % 2 == 0,
    scales=_gemma2_scales,
)
_QWEN = Family(
    window_needs_flag=True,
    local=lambda config, layer: layer >= config.keys.read("max_window_layers", int, 28),
)
FAMILIES: dict[str, Family] = {
    "llama": Family(has_windows=False, biases=_llama_biases),
    "mistral": Family(),
    "qwen2": replace(_QWEN, biases=lambda config: QKV),
    "qwen3": replace(_QWEN, head_norms=True, biases=_flagged_biases),
    "smollm3": replace(
        _QWEN,
        tied=True,
        theta=2e6,
        is_rotary=_smollm3_is_rotary,
        local=_smollm3_is_rotary,
        biases=_llama_biases,
    ),
    "phi3": Family(merged=True),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": replace(
        _GEMMA2,
        theta=1e6,
        has_local_rope=True,
        head_norms=True,
        local=lambda config, layer: (
            (layer + 1) % config.keys.size("sliding_window_pattern", 6) != 0
        ),
        scales=_gemma3_scales,
    ),
    "granite": Family(has_windows=False, biases=_llama_biases, scales=_granite_scales),
    "olmo2": Family(
        input_norms=False,
        output_norms=True,
        head_norms=True,
        whole_norms=True,
        has_windows=False,
        biases=_flagged_biases,
    ),
    "qwen3_moe": Family(
        window_needs_flag=True,
        has_layer_types=False,
        head_norms=True,
        biases=_flagged_biases,
        experts=_qwen3_experts,
    ),
    "mixtral": Family(theta=1e6, has_layer_types=False, experts=_mixtral_experts),
}
