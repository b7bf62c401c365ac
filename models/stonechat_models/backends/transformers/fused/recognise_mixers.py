"""Recognises the recurrent layers that can decode on the states in the pool."""

import logging

import torch
from torch import nn
from transformers.cache_utils import Cache, LinearAttentionLayer

from stonechat_models.backends.transformers.fused.hybrid_layer import (
    FusedHybridLayer,
    LayerNames,
)
from stonechat_models.backends.transformers.fused.mixers import (
    SlotDeltaNet,
    SlotMamba,
    SlotShortConv,
)
from stonechat_models.backends.transformers.fused.modules import FusedRMSNorm, MergedMLP
from stonechat_models.backends.transformers.fused.parity_check import (
    Call,
    ParityContext,
    agree,
    random_rows,
)
from stonechat_models.backends.transformers.slot_states import SlotMixer, SlotStates

logger = logging.getLogger(__name__)

MIXERS: dict[str, type[SlotMixer]] = {
    **dict.fromkeys(("Lfm2ShortConv", "Lfm2MoeShortConv"), SlotShortConv),
    **dict.fromkeys(
        ("Qwen3NextGatedDeltaNet", "Qwen3_5GatedDeltaNet", "Qwen3_5MoeGatedDeltaNet"), SlotDeltaNet
    ),
    **dict.fromkeys(
        ("BambaMixer", "GraniteMoeHybridMambaLayer", "Mamba2Mixer", "NemotronHMamba2Mixer"),
        SlotMamba,
    ),
}
"""Layers of transformers that do nothing which a parity check on random numbers could miss."""
_QWEN = LayerNames("input_layernorm", "linear_attn", "post_attention_layernorm", "mlp")
_LFM2 = LayerNames("operator_norm", "conv", "ffn_norm", "feed_forward")
HYBRID_LAYERS = {
    **dict.fromkeys(("Lfm2DecoderLayer", "Lfm2MoeDecoderLayer"), _LFM2),
    **dict.fromkeys(("Qwen3NextDecoderLayer", "Qwen3_5DecoderLayer"), _QWEN),
}
"""Layers of transformers that are norm, attention or recurrent layer, add, norm, MLP, add."""
PROMPT_LENGTH = 6
SLOTS = (3, 0, 2)
"""Where the states of the check's sequences lie. Slot 1 is free, and the last is for padding."""
NUM_SLOTS = 4
LARGEST_STATE = 1 << 15
"""Numbers in the state of a head, with sizes rounded up to powers of two. A program keeps them in
registers."""


@torch.no_grad()
def fused_mixer(original: nn.Module) -> SlotMixer | None:
    """A replacement for a recurrent layer whose class is known, or None."""
    is_own = type(original).__module__.startswith("transformers.models.")
    kind = MIXERS.get(type(original).__name__) if is_own else None
    if kind is None or getattr(original, "activation", "silu") != "silu":
        return None
    fused = kind(original)
    try:
        return fused if _decodes_alike(original, fused) else None
    except Exception as error:  # after any error, the model keeps its own layer
        logger.warning("%s decodes as in transformers", type(original).__name__, exc_info=error)
        return None


def is_known_hybrid(part: nn.Module) -> bool:
    """Whether its class is known. `fused_hybrid_layer` checks more."""
    is_own = type(part).__module__.startswith("transformers.models.")
    return is_own and type(part).__name__ in HYBRID_LAYERS


def fused_hybrid_layer(original: nn.Module, call: Call) -> FusedHybridLayer | None:
    """Return a fused replacement, or None. Call after the layer's parts have been replaced."""
    names = HYBRID_LAYERS[type(original).__name__]
    norm, mlp_norm = (original._modules.get(name) for name in (names.norm, names.mlp_norm))
    mixer = original._modules.get(names.recurrent)
    is_known = (
        isinstance(mixer, SlotMixer) if mixer is not None else "self_attn" in original._modules
    )
    if not is_known or not isinstance(original._modules.get(names.mlp), MergedMLP):
        return None
    if not isinstance(norm, FusedRMSNorm) or not isinstance(mlp_norm, FusedRMSNorm):
        return None
    rows = ParityContext().query_start[-1]
    hidden = random_rows((1, rows, norm.weight.shape[0]), norm.weight)
    fused = FusedHybridLayer(original, names)
    expected = call.run(original, hidden.clone(), ParityContext())
    actual = call.run(fused, hidden.clone(), ParityContext())
    return fused if agree(expected, actual) else None


def _decodes_alike(original: nn.Module, fused: SlotMixer) -> bool:
    """Whether a token after a prompt gives the same output and states, and changes no others."""
    conv = original._modules.get("conv1d") or original._modules.get("conv")
    assert isinstance(conv, nn.Conv1d)
    hidden_size = original.out_proj.out_features  # type: ignore[union-attr]
    hidden = random_rows((len(SLOTS), PROMPT_LENGTH + 1, int(hidden_size)), conv.weight)  # type: ignore[arg-type]
    cache = Cache(layers=[LinearAttentionLayer() for _ in range(fused.layer_idx + 1)])
    layer = cache.layers[-1]
    cached = {fused.cache_name: cache}
    original(hidden[:, :PROMPT_LENGTH], **cached)
    states = SlotStates(
        _pool(layer.conv_states[0]),
        None if layer.recurrent_states[0] is None else _pool(layer.recurrent_states[0]),
        torch.tensor([*SLOTS, NUM_SLOTS], device=hidden.device),
    )
    tokens = hidden[:, PROMPT_LENGTH:]
    rows = torch.cat([tokens[:, 0], tokens[:1, 0]])  # the last one is padding
    output = fused.decode(rows, states)[: len(SLOTS)]
    if not agree(original(tokens, **cached)[:, 0], output):
        return False
    pools = [(states.conv, layer.conv_states[0]), (states.recurrent, layer.recurrent_states[0])]
    return all(
        agree(expected.to(hidden.dtype), pool[list(SLOTS)].to(hidden.dtype))
        and bool((pool[[1, NUM_SLOTS]] == 1).all())
        for pool, expected in pools
        if pool is not None and expected is not None
    )


def _pool(state: torch.Tensor) -> torch.Tensor:
    """States in their slots, and ones in the others."""
    if state.dim() == 4 and state[0, 0].numel() > LARGEST_STATE:
        raise ValueError(f"a head has a state of {state[0, 0].numel()} numbers")
    pool = state.new_ones(NUM_SLOTS + 1, *state.shape[1:])
    pool[list(SLOTS)] = state
    return pool
