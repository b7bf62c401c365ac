"""How the model families of the native backend differ.

The defaults for absent config keys are those of transformers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from stonechat_models.backends.native.plan.mixtures import (
    Experts,
    read_mixtral_experts,
    read_qwen3_5_experts,
    read_qwen3_experts,
)
from stonechat_models.backends.native.plan.recurrence import (
    Recurrence,
    read_delta_rule,
    read_short_convolutions,
)
from stonechat_models.backends.native.plan.rope import LOCAL, RopeAxes
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


def _seed_oss_biases(config: HFConfig) -> frozenset[str]:
    attention = QKV if config.keys.read("attention_bias", bool, True) else frozenset()
    output = ATTENTION - QKV if config.keys.read("attention_out_bias", bool, False) else frozenset()
    has_mlp_biases = config.keys.read("mlp_bias", bool, False)
    return attention | output | (FEED_FORWARD if has_mlp_biases else frozenset())


def _exaone4_is_local(config: HFConfig, layer: int) -> bool:
    if config.layer_types:
        return config.layer_types[layer] == LOCAL
    return (layer + 1) % config.keys.size("sliding_window_pattern", 4) != 0


def _exaone4_is_rotary(config: HFConfig, layer: int) -> bool:
    return config.keys.is_null("sliding_window") or _exaone4_is_local(config, layer)


def _lfm2_intermediate_size(config: HFConfig) -> int:
    keys = config.keys
    size = keys.size("block_ff_dim", keys.size("intermediate_size", 12288))
    if not keys.read("block_auto_adjust_ff_dim", bool, True):
        return size
    size = int(2 * size / 3)
    size = int(keys.positive("block_ffn_dim_multiplier", float, 1.0) * size)
    multiple = keys.size("block_multiple_of", 256)
    return math.ceil(size / multiple) * multiple


Trait = Callable[[HFConfig, int], bool]
"""Whether the layer of this index has a trait."""


@dataclass(frozen=True, slots=True)
class Family:
    """Traits of one `model_type`."""

    tied_key: str = "tie_word_embeddings"
    """A key that decides before `tie_word_embeddings` does."""
    tied: bool = False
    """Whether the embedding also serves as the head if the config does not say."""
    head_dim: int = 0
    """The size of a head if the config does not say; 0: the hidden size over the heads."""
    theta: float = 10000.0
    """Base of the rotary embedding if the config has none."""
    has_local_rope: bool = False
    """Layers with a sliding window have a rotary embedding of their own."""
    rotary_share: float | None = None
    """The part of a head that the rotary embedding covers if the config does not say; None: it
    covers whole heads."""
    rope_axes: RopeAxes | None = None
    """How a token of an image is rotated; None: by one position, as text is."""
    is_rotary: Trait = lambda config, layer: True
    """Whether a layer has a rotary embedding."""
    activation: str = "silu"
    activation_key: str = "hidden_act"
    intermediate_size: Callable[[HFConfig], int] = lambda config: config.keys.positive(
        "intermediate_size", int
    )
    eps_key: str = "rms_norm_eps"
    eps: float = 1e-6
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
    has_gates: bool = False
    """Attention's output is gated. The rows of each query head are followed by its gate's."""
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
    recurrence: Callable[[HFConfig], Recurrence] | None = None
    stored_names: tuple[tuple[str, str], ...] = ()
    """Parts of the usual names of tensors, and what they are here."""

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
_QWEN3_5 = Family(
    rotary_share=0.25,
    norm_offset=1.0,
    head_dim=256,
    head_norms=True,
    biases=_flagged_biases,
    has_gates=True,
    has_windows=False,
    recurrence=read_delta_rule,
    rope_axes=RopeAxes((11, 11, 10), interleaved=True),
)
FAMILIES: dict[str, Family] = {
    "llama": Family(has_windows=False, biases=_llama_biases),
    "mistral": Family(window=4096),
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
    "phi3": Family(merged=True, rotary_share=1.0),
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
    "exaone4": Family(
        eps=1e-5,
        input_norms=False,
        output_norms=True,
        head_norms=True,
        window=4096,
        is_rotary=_exaone4_is_rotary,
        local=_exaone4_is_local,
    ),
    "seed_oss": Family(head_dim=128, has_windows=False, biases=_seed_oss_biases),
    "qwen3_moe": Family(
        window_needs_flag=True,
        has_layer_types=False,
        head_norms=True,
        biases=_flagged_biases,
        experts=read_qwen3_experts,
    ),
    "qwen3_5": _QWEN3_5,
    "qwen3_5_text": _QWEN3_5,
    "qwen3_5_moe": replace(_QWEN3_5, experts=read_qwen3_5_experts),
    "qwen3_5_moe_text": replace(_QWEN3_5, experts=read_qwen3_5_experts),
    "lfm2": Family(
        tied_key="tie_embedding",
        tied=True,
        theta=1e6,
        intermediate_size=_lfm2_intermediate_size,
        eps_key="norm_eps",
        eps=1e-5,
        head_norms=True,
        has_windows=False,
        recurrence=read_short_convolutions,
        stored_names=(
            ("self_attn.o_proj", "self_attn.out_proj"),
            ("self_attn.q_norm", "self_attn.q_layernorm"),
            ("self_attn.k_norm", "self_attn.k_layernorm"),
            ("mlp.gate_proj", "feed_forward.w1"),
            ("mlp.up_proj", "feed_forward.w3"),
            ("mlp.down_proj", "feed_forward.w2"),
            ("input_layernorm", "operator_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("model.norm", "model.embedding_norm"),
        ),
    ),
    "mixtral": Family(theta=1e6, has_layer_types=False, experts=read_mixtral_experts),
}
