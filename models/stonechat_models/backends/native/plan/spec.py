"""What the native backend needs to know about a model, read from its config.json."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.native.bindings import GROUP, Activation, Mixer
from stonechat_models.backends.native.plan.composites import family_of, has_parts
from stonechat_models.backends.native.plan.families import Family, Scales
from stonechat_models.backends.native.plan.mixtures import Experts
from stonechat_models.backends.native.plan.recurrence import Recurrence
from stonechat_models.backends.native.plan.rope import GLOBAL, LOCAL, Rotary, rotary_frequencies
from stonechat_models.checkpoint.hf_config import MAX_SIZE, HFConfig
from stonechat_models.errors import UnsupportedModelError

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}
MAX_HEAD_DIM = 256
MAX_HEADS_PER_GROUP = 32


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes, constants and per-layer attention settings of a decoder like Llama."""

    family: Family
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    scales: Scales
    activation: Activation
    tied: bool
    rotary: tuple[Rotary, ...]
    """Tables of rotary frequencies, all of the same size."""
    windows: tuple[int, ...]
    """For each layer: the number of keys that a query sees, its own included; 0 means all."""
    rotary_tables: tuple[int, ...]
    """For each layer: the index of its table in `rotary`; -1 means no rotary embedding."""
    experts: Experts | None
    recurrence: Recurrence | None
    biases: frozenset[str]
    """The projections that have a bias, by their names in `LayerStruct`."""
    rotary_axes: npt.NDArray[np.int32] | None = None
    """For each frequency: whether it rotates by a token's position in time (0), height (1) or width
    (2), int32[rotary_dim / 2]. None: a token has one position."""

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def kv_elements_per_token(self) -> int:
        """Cached elements per token, over all layers."""
        num_recurrent = self.recurrence.num_layers if self.recurrence else 0
        return (self.num_layers - num_recurrent) * 2 * self.kv_size

    @property
    def state_elements(self) -> int:
        """Floats of the recurrent state of a sequence, over all layers."""
        recurrence = self.recurrence
        return recurrence.num_layers * recurrence.state_elements if recurrence else 0

    def mixer(self, layer: int) -> Mixer:
        """What mixes the tokens of a sequence in the layer."""
        return self.recurrence.mixers[layer] if self.recurrence else Mixer.ATTENTION

    @property
    def inverse_frequencies(self) -> npt.NDArray[np.float32]:
        """float32[tables, rotary_dim / 2]"""
        return np.stack([table.inverse_frequencies for table in self.rotary])

    def has_experts(self, layer: int) -> bool:
        """True if the layer's feed-forward block is a mixture of experts."""
        return self.experts is not None and self.experts.layers[layer]


def read_spec(config: HFConfig) -> ModelSpec:
    """Read the spec of a model.

    Raises `UnsupportedModelError` with the reason if the native backend cannot serve the model.
    """
    family = family_of(config)
    is_causal = not config.keys.is_null("is_causal") and config.keys.read("is_causal", bool, True)
    if config.keys.read("use_bidirectional_attention", bool, False) or not is_causal:
        raise UnsupportedModelError(
            "attention in both directions is not supported by the native backend"
        )
    if not (config.num_layers and config.hidden_size and config.num_heads and config.vocab_size):
        raise UnsupportedModelError("its config does not say how large the model is")
    head_dim = config.head_dim or family.head_dim or config.hidden_size // config.num_heads
    if head_dim > MAX_HEAD_DIM:  # before its frequencies take memory
        raise UnsupportedModelError(f"its head_dim is above {MAX_HEAD_DIM}")
    experts = family.experts(config) if family.experts else None
    is_mixture = experts is not None and all(experts.layers)
    rotary, tables = _rotary(config, family, head_dim)
    spec = ModelSpec(
        family=family,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=head_dim,
        intermediate_size=GROUP if is_mixture else family.intermediate_size(config),
        vocab_size=config.vocab_size,
        rms_norm_eps=config.keys.positive(family.eps_key, float, family.eps),
        scales=family.scales(config, head_dim),
        activation=_activation(config, family),
        tied=_is_tied(config, family),
        rotary=rotary,
        windows=_windows(config, family),
        rotary_tables=tables,
        experts=experts,
        recurrence=family.recurrence(config) if family.recurrence else None,
        biases=family.biases(config),
        rotary_axes=_rotary_axes(config, family, rotary),
    )
    _check_sizes(spec)
    return spec


def _rotary_axes(
    config: HFConfig, family: Family, rotary: tuple[Rotary, ...]
) -> npt.NDArray[np.int32] | None:
    if family.rope_axes is None:
        return None
    return family.rope_axes.of(config.rope, rotary[0].inverse_frequencies.size)


def _activation(config: HFConfig, family: Family) -> Activation:
    name = config.keys.read(family.activation_key, str, family.activation)
    activation = ACTIVATIONS.get(name)
    needs_silu = family.experts or family.recurrence
    if activation is None or (needs_silu and activation != Activation.SILU):
        raise UnsupportedModelError(f"the activation {name} is not supported by the native backend")
    return activation


def _is_tied(config: HFConfig, family: Family) -> bool:
    if has_parts(config):  # some say it for one part and mean the other: then the files decide
        text = config.keys.section("text_config")
        is_untied = config.raw.get("tie_word_embeddings") is False
        return not is_untied or text.read("tie_word_embeddings", bool, False)
    usual = config.keys.read("tie_word_embeddings", bool, family.tied)
    return config.keys.read(family.tied_key, bool, usual)


def _check_sizes(spec: ModelSpec) -> None:
    """The border for sizes: those that pass are ones that the compiled code can hold."""
    if spec.q_size + 2 * spec.kv_size > MAX_SIZE:
        raise UnsupportedModelError("its heads are too many")
    if not 0 < spec.intermediate_size <= MAX_SIZE:
        raise UnsupportedModelError(f"its intermediate_size is {spec.intermediate_size}")
    if len({table.inverse_frequencies.size for table in spec.rotary}) > 1:
        raise UnsupportedModelError("its layers rotate different numbers of dimensions")
    for name in ("hidden_size", "head_dim", "intermediate_size"):
        if getattr(spec, name) % GROUP:
            raise UnsupportedModelError(f"its {name} is not a multiple of {GROUP}")
    if spec.num_heads % spec.num_kv_heads:
        raise UnsupportedModelError("its number of query heads is not a multiple of its key heads")
    if spec.num_heads // spec.num_kv_heads > MAX_HEADS_PER_GROUP:
        raise UnsupportedModelError(f"more than {MAX_HEADS_PER_GROUP} query heads share a key head")
    if spec.experts is not None and any(spec.experts.layers):
        _check_experts(spec.experts)


def _check_experts(experts: Experts) -> None:
    if experts.size < 1 or experts.size % GROUP or experts.shared_size % GROUP:
        raise UnsupportedModelError(f"its experts' size is not a multiple of {GROUP}")
    if not 0 < experts.per_token <= experts.count:
        raise UnsupportedModelError(
            "its experts per token are fewer than 1 or more than its experts"
        )


def _windows(config: HFConfig, family: Family) -> tuple[int, ...]:
    """The window of each layer, as transformers' configuration classes decide it."""
    has_flag = config.keys.read("use_sliding_window", bool, False) or not family.window_needs_flag
    is_on = family.has_windows and has_flag and not config.keys.is_null("sliding_window")
    window = config.keys.read("sliding_window", int, family.window) if is_on else 0
    if window < 0:
        raise config.keys.error("sliding_window", f"is {window}, which is below 0")
    return tuple(window if family.is_local(config, i) else 0 for i in range(config.num_layers))


def _rotary(
    config: HFConfig, family: Family, head_dim: int
) -> tuple[tuple[Rotary, ...], tuple[int, ...]]:
    layers = range(config.num_layers)
    if family.has_local_rope:
        kinds = (LOCAL, GLOBAL)
        tables = tuple(rotary_frequencies(config, head_dim, family.theta, k) for k in kinds)
        return tables, tuple(0 if family.is_local(config, i) else 1 for i in layers)
    single_table = (rotary_frequencies(config, head_dim, family.theta, share=family.rotary_share),)
    return single_table, tuple(0 if family.is_rotary(config, i) else -1 for i in layers)
