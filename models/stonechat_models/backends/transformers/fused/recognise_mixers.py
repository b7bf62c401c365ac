"""Recognises the recurrent layers that can run on the states in the pool."""

import logging
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

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
from stonechat_models.backends.transformers.slot_states import (
    SlotMixer,
    SlotStates,
    StepSequences,
)

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
LENGTHS = (22, 2, 1)
"""Tokens of each sequence of the check: its prompt, which crosses tiles, and two further steps."""
SLOTS = (3, 0, 2)
"""Where the states of the check's sequences lie. Slot 1 is free, and the last is for padding."""
NUM_SLOTS = 4
LARGEST_STATE = 1 << 15
"""Numbers in the state of a head, with sizes rounded up to powers of two. A program keeps them in
registers."""


@torch.no_grad()
def fused_mixer(original: nn.Module) -> SlotMixer | None:
    """A replacement for a recurrent layer whose class is known, or None.

    It uses its kernels for prompts, and those for decode steps, if they are right.
    """
    is_own = type(original).__module__.startswith("transformers.models.")
    kind = MIXERS.get(type(original).__name__) if is_own else None
    if kind is None or getattr(original, "activation", "silu") != "silu":
        return None
    fused = kind(original)
    try:
        fused.decodes, fused.packs_prompts = _mixes_alike(original, fused)
    except Exception as error:  # after any error, the model keeps its own layer
        _warn(original, "runs", error)
        return None
    return fused if fused.decodes else None


def _warn(original: nn.Module, does: str, error: Exception | None) -> None:
    logger.warning("%s %s as in transformers", type(original).__name__, does, exc_info=error)


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


def _mixes_alike(original: nn.Module, fused: SlotMixer) -> tuple[bool, bool]:
    """Whether one token of each sequence gives the same outputs and states, and whether prompts and
    more tokens of each do. Raises what `original` raises."""
    conv = original._modules.get("conv1d") or original._modules.get("conv")
    assert isinstance(conv, nn.Conv1d)
    hidden_size = original.out_proj.out_features  # type: ignore[union-attr]
    hidden = random_rows((len(SLOTS), sum(LENGTHS), int(hidden_size)), conv.weight)  # type: ignore[arg-type]
    cache = Cache(layers=[LinearAttentionLayer() for _ in range(fused.layer_idx + 1)])
    layer, num_before = cache.layers[-1], 0
    decodes = packs = True
    for length in LENGTHS:
        tokens = hidden[:, num_before : num_before + length]
        before = [None if state is None else state.clone() for state in _states(layer)]
        expected = original(tokens, **{fused.cache_name: cache})
        conv_states, states = map(_pool, _states(layer), before)
        assert conv_states is not None
        pools = SlotStates(conv_states, states, _sequences(length, num_before, hidden.device))
        try:
            is_right = _is_step(fused, tokens, pools, expected, layer)
            error = None
        except Exception as caught:  # the compiler's, or too much shared memory
            is_right, error = False, caught
        if length > 1:
            packs = packs and is_right
        else:
            decodes = is_right
        if not is_right:
            _warn(original, "computes prompts" if length > 1 else "decodes", error)
        num_before += length
    return decodes, packs


def _states(layer: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return layer.conv_states[0], layer.recurrent_states[0]


def _is_step(
    fused: SlotMixer,
    tokens: torch.Tensor,
    states: SlotStates,
    expected: torch.Tensor,
    after: Any,
) -> bool:
    """Whether a step of `tokens` gives the output `expected`, leaves the states of the layer of a
    cache `after`, and changes no others."""
    rows = torch.cat([tokens.flatten(0, 1), tokens[0, :1]])  # the last one is padding
    output = fused.mix(rows, states)[:-1]
    if not agree(expected, output.view(expected.shape), "states"):
        return False
    pairs = zip((states.conv, states.recurrent), _states(after), strict=True)
    return all(_is_same(*pair, tokens.dtype) for pair in pairs)


def _sequences(length: int, num_before: int, device: torch.device) -> StepSequences:
    """Sequences of equal length in their slots, and a token of padding."""
    lengths = [length] * len(SLOTS) + [1]
    contexts = [num_before + length] * len(SLOTS) + [0]
    of_tokens = [i for i, n in enumerate(lengths) for _ in range(n)]

    def numbers(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return StepSequences(
        slots=numbers([*SLOTS, NUM_SLOTS]).long(),
        query_start=numbers([0, *accumulate(lengths)]),
        context_lens=numbers(contexts),
        of_tokens=numbers(of_tokens) if length > 1 else None,
    )


def _pool(after: torch.Tensor | None, before: torch.Tensor | None) -> torch.Tensor | None:
    """The states `before` a step, if it has any, and ones in all other slots: a sequence that
    begins does not read them."""
    if after is None:
        return None
    if after.dim() == 4 and after[0, 0].numel() > LARGEST_STATE:
        raise ValueError(f"a head has a state of {after[0, 0].numel()} numbers")
    pool = after.new_ones(NUM_SLOTS + 1, *after.shape[1:])
    if before is not None:
        pool[list(SLOTS)] = before
    return pool


def _is_same(pool: torch.Tensor | None, expected: torch.Tensor | None, dtype: torch.dtype) -> bool:
    """Whether the sequences have the states `expected`, within roundings of `dtype`, and all other
    slots are as they were."""
    if pool is None or expected is None:
        return pool is expected
    are_ones = bool((pool[[1, NUM_SLOTS]] == 1).all())
    return are_ones and agree(expected.to(dtype), pool[list(SLOTS)].to(dtype), "states")
