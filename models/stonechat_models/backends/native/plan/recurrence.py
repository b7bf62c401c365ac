"""Layers that keep a state of fixed size for each sequence, as config.json describes them.

The defaults for absent config keys are those of transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass

from stonechat_models.backends.native.bindings import GROUP, Mixer
from stonechat_models.checkpoint.hf_config import MAX_SIZE, HFConfig
from stonechat_models.errors import UnsupportedModelError

MAX_TAPS = 8
MAX_STATE_HEAD_DIM = 256
ATTENTION = "full_attention"


@dataclass(frozen=True, slots=True)
class Recurrence:
    """The mixers of all layers. Those that keep a state are of one kind and size."""

    mixers: tuple[Mixer, ...]
    taps: int
    """Tokens that a convolution sees, the current one included."""
    channels: int
    """Channels of a convolution."""
    has_biases: bool = False
    """Whether short convolutions and their projections have biases."""
    key_heads: int = 0
    value_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    interleaved: bool = False
    """Whether value head i has key head i % key_heads, as in GGUF files; else they are grouped."""

    @property
    def num_layers(self) -> int:
        """Layers that keep a state."""
        return sum(mixer is not Mixer.ATTENTION for mixer in self.mixers)

    @property
    def key_size(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def state_elements(self) -> int:
        """Floats of one state: inputs of the convolution, and matrices of the delta rule."""
        return (self.taps - 1) * self.channels + self.value_heads * self.key_dim * self.value_dim


def read_short_convolutions(config: HFConfig) -> Recurrence:
    """Read what LFM2 says. Raises `UnsupportedModelError` if it cannot be served here."""
    listed = config.keys.read("full_attn_idxs", list[int], list(range(config.num_layers)))
    recurrence = Recurrence(
        mixers=_mixers(config, "conv", Mixer.SHORT_CONVOLUTION, lambda i: i in listed),
        taps=config.keys.read("conv_L_cache", int, 3),
        channels=config.hidden_size,
        has_biases=config.keys.read("conv_bias", bool, False),
    )
    _check_taps(recurrence)
    return recurrence


def read_delta_rule(config: HFConfig) -> Recurrence:
    """Read what Qwen3.5 says. Raises `UnsupportedModelError` if it cannot be served here."""
    keys = config.keys
    interval = keys.size("full_attention_interval", 4)
    key_heads, key_dim = (
        keys.size("linear_num_key_heads", 16),
        keys.size("linear_key_head_dim", 128),
    )
    heads, dim = keys.size("linear_num_value_heads", 32), keys.size("linear_value_head_dim", 128)
    recurrence = Recurrence(
        mixers=_mixers(
            config, "linear_attention", Mixer.DELTA_RULE, lambda i: (i + 1) % interval == 0
        ),
        taps=keys.read("linear_conv_kernel_dim", int, 4),
        channels=2 * key_heads * key_dim + heads * dim,
        key_heads=key_heads,
        value_heads=heads,
        key_dim=key_dim,
        value_dim=dim,
    )
    _check_taps(recurrence)
    _check_heads(recurrence)
    return recurrence


def _mixers(
    config: HFConfig, name: str, mixer: Mixer, has_attention: Callable[[int], bool]
) -> tuple[Mixer, ...]:
    """The mixer of each layer. `has_attention` decides if the config has no `layer_types`."""
    kinds = {name: mixer, ATTENTION: Mixer.ATTENTION}
    types = config.layer_types[: config.num_layers] or tuple(
        ATTENTION if has_attention(i) else name for i in range(config.num_layers)
    )
    for kind in types:
        if kind not in kinds:
            raise UnsupportedModelError(
                f"layers of type {kind} are not supported by the native backend"
            )
    return tuple(kinds[kind] for kind in types)


def _check_taps(recurrence: Recurrence) -> None:
    if not 2 <= recurrence.taps <= MAX_TAPS:
        raise UnsupportedModelError(
            f"its convolutions cover {recurrence.taps} tokens; from 2 to {MAX_TAPS} are supported"
        )


def _check_heads(recurrence: Recurrence) -> None:
    for dim in (recurrence.key_dim, recurrence.value_dim):
        if dim % GROUP or dim > MAX_STATE_HEAD_DIM:
            raise UnsupportedModelError(
                f"the heads of its linear attention have a size that is not a multiple of {GROUP} "
                f"up to {MAX_STATE_HEAD_DIM}"
            )
    if recurrence.value_heads % recurrence.key_heads:
        raise UnsupportedModelError(
            "its linear attention has value heads that are not a multiple of its key heads"
        )
    columns = recurrence.channels + recurrence.value_size + 2 * recurrence.value_heads
    if max(columns, recurrence.state_elements) > MAX_SIZE:
        raise UnsupportedModelError("the heads of its linear attention are too many")
