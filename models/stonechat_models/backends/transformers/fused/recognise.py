"""Recognises the parts of a model that can be fused, and builds their replacements.

For each part it tries each known variant and keeps the first whose output matches the part's own
output on random input. A part without a match is not replaced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from stonechat_models.backends.quantization.codes.coded_linear import CodedLinear
from stonechat_models.backends.transformers.fused.attention import FusedAttention
from stonechat_models.backends.transformers.fused.layer import FusedDecoderLayer
from stonechat_models.backends.transformers.fused.linears import Linear, is_plain, merged_linear
from stonechat_models.backends.transformers.fused.modules import FusedRMSNorm, MergedMLP
from stonechat_models.backends.transformers.fused.parity_check import (
    PARITY_ROWS,
    AttentionCall,
    Call,
    ParityContext,
    agree,
    output_of,
    random_rows,
)

LLAMA_LIKE = frozenset(
    {
        "Arcee",
        "Cwm",
        "Dots1",
        "Gemma",
        "Glm4Moe",
        "GptOss",
        "Llama",
        "Mellum",
        "Ministral",
        "Mistral",
        "Mixtral",
        "Phi3",
        "Qwen2",
        "Qwen2Moe",
        "Qwen3",
        "Qwen3Moe",
        "Qwen3VLMoeText",
        "Qwen3VLText",
        "SeedOss",
        "SmolLM3",
        "SolarOpen",
    }
)
"""Families of transformers whose layers are norm, attention, add, norm, MLP, add, and no more."""
ATTENTIONS = LLAMA_LIKE | frozenset(
    {
        "Apertus",
        "Exaone4",
        "Gemma2",
        "Gemma3",
        "Granite",
        "GraniteMoe",
        "GraniteMoeShared",
        "Starcoder2",
    }
)
"""Families of transformers whose attention does nothing that a parity check on random numbers could
miss, such as clipping, or scaling by position."""
HYBRID_ATTENTIONS = frozenset({"Lfm2", "Lfm2Moe", "Qwen3Next", "Qwen3_5", "Qwen3_5Moe"})
"""The same of families with recurrent layers. Their check at load needs the model's own attention,
so it is replaced after that."""
NORM_VARIANTS = ((0.0, True), (1.0, False), (0.0, False))
"""(offset of the weight, whether the normalised row is rounded before scaling), per variant."""
LAYER_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
MLP_NAMES = (
    ("gate_up_proj", "gate_proj", "up_proj", "down_proj"),
    ("w13", "w1", "w3", "w2"),
    ("input_linear", "", "", "output_linear"),
)
"""What families call the layers of a gated MLP: gate and up in one, gate, up, and down. Those of
Mamba hybrids come in one only."""
OUTPUT_NAMES = ("o_proj", "out_proj")
NORM_NAMES = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"))
"""What families call the output projection of attention, and the norms of query and key heads."""
MAX_HEAD_SIZE = 256


def fused_norm(norm: nn.Module) -> nn.Module | None:
    """A replacement for an RMS norm of a known variant, or None."""
    weight = getattr(norm, "weight", None)
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    name = type(norm).__name__
    if "RMSNorm" not in name or "Gated" in name or isinstance(norm, FusedRMSNorm):
        return None
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not isinstance(epsilon, float):
        return None
    if weight.is_meta:
        return None
    rows = random_rows((1, PARITY_ROWS, weight.shape[0]), weight)
    expected = output_of(norm, rows)
    for offset, rounds_first in NORM_VARIANTS:
        fused = FusedRMSNorm(weight, epsilon, offset, rounds_first)
        if agree(expected, output_of(fused, rows)):
            return fused
    return None


def merged_mlp(mlp: nn.Module) -> nn.Module | None:
    """A replacement for an MLP of gate, up and down, or None. Gate and up may be merged already."""
    if isinstance(mlp, MergedMLP):
        return None
    down = merged = None
    for gate_up, gate, up, name in MLP_NAMES:
        down = down or _plain_linear(mlp, name)
        merged = merged or _plain_linear(mlp, gate_up) or _merged_linears(mlp, gate, up)
    if merged is None or down is None or merged.out_features != 2 * down.in_features:
        return None
    rows = random_rows((1, PARITY_ROWS, merged.in_features), merged.weight)
    expected = output_of(mlp, rows)
    for uses_gelu in (False, True):
        fused = MergedMLP(merged, down, uses_gelu=uses_gelu)
        if agree(expected, output_of(fused, rows)):
            return fused
    return None


def is_known_attention(part: nn.Module) -> bool:
    """Whether its class is known. `fused_attention` checks more."""
    return _family(part, "Attention") in ATTENTIONS


def is_known_hybrid_attention(part: nn.Module) -> bool:
    """The same for attention beside recurrent layers."""
    return _family(part, "Attention") in HYBRID_ATTENTIONS


def is_known_layer(part: nn.Module) -> bool:
    """Whether its class is known. `fused_layer` checks more."""
    return _family(part, "DecoderLayer") in LLAMA_LIKE


def fused_attention(original: nn.Module, call: Call) -> nn.Module | None:
    """Returns a fused replacement, or None. Call after the q and k norms have been replaced."""
    qkv, output = _merged_qkv(original), None
    for name in OUTPUT_NAMES:
        output = output or _plain_linear(original, name)
    if qkv is None or output is None or not _has_known_norms(original):
        return None
    hidden = random_rows((1, ParityContext().query_start[-1], qkv.in_features), qkv.weight)
    context = ParityContext()
    expected = call.run(original, hidden, context)
    if len(context.attention_calls) != 1 or not isinstance(expected, tuple):
        return None
    reference = context.attention_calls[0]
    is_gated = _matches(original, qkv, reference, is_gated=True)
    if not is_gated and not _matches(original, qkv, reference, is_gated=False):
        return None
    angles = call.arguments["position_embeddings"][0].shape[-1]
    for rotary_size in (angles, 2 * angles, 0):
        if rotary_size > reference.query.shape[2] or rotary_size % 2:
            continue
        fused = FusedAttention(
            qkv,
            output,
            layer=reference.layer,
            num_heads=reference.query.shape[1],
            num_kv_heads=reference.key.shape[1],
            head_size=reference.query.shape[2],
            rotary_size=rotary_size,
            norms=_head_norms(original),
            spec=reference.spec,
            is_gated=is_gated,
        )
        context = ParityContext(reference.output)
        actual = call.run(fused, hidden, context)
        if not isinstance(actual, tuple) or not agree(expected[0], actual[0]):
            continue
        actual_call = context.attention_calls[0]
        if all(
            agree(getattr(reference, name), getattr(actual_call, name))
            for name in ("query", "key", "value")
        ):
            return fused
    return None


def fused_layer(original: nn.Module, call: Call) -> nn.Module | None:
    """Returns a fused replacement, or None. Call after the layer's parts have been replaced."""
    parts: dict[str, Any] = {
        name: part for name, part in original._modules.items() if not isinstance(part, nn.Dropout)
    }
    if (
        parts.keys() != LAYER_PARTS
        or original._parameters
        or original._buffers
        or "_hf_hook" in original.__dict__
    ):
        return None
    input_norm, attention = parts["input_layernorm"], parts["self_attn"]
    attention_norm = parts["post_attention_layernorm"]
    if not (isinstance(input_norm, FusedRMSNorm) and isinstance(attention_norm, FusedRMSNorm)):
        return None
    if not isinstance(attention, FusedAttention):
        return None
    rows = ParityContext().query_start[-1]
    hidden = random_rows((1, rows, input_norm.weight.shape[0]), input_norm.weight)
    fused = FusedDecoderLayer(input_norm, attention, attention_norm, parts["mlp"])
    with _without_experts(original, fused, hidden):
        expected = call.run(original, hidden.clone(), ParityContext())
        actual = call.run(fused, hidden.clone(), ParityContext())
    return fused if agree(expected, actual) else None


class _Identity(nn.Module):
    """Returns its input, alone or as the first of a pair."""

    def __init__(self, is_pair: bool) -> None:
        super().__init__()
        self.is_pair = is_pair

    def forward(self, x: torch.Tensor) -> object:
        return (x, None) if self.is_pair else x


@contextmanager
def _without_experts(
    original: nn.Module, fused: FusedDecoderLayer, hidden: torch.Tensor
) -> Iterator[None]:
    """Replace an unmerged MLP by the identity during a parity check.

    It may hold experts, and a rounding may make the router choose others.
    """
    mlp = fused.mlp
    if not isinstance(mlp, MergedMLP):
        original.mlp = fused.mlp = _Identity(isinstance(output_of(mlp, hidden), tuple))
    yield
    original.mlp = fused.mlp = mlp


def _family(part: nn.Module, kind: str) -> str | None:
    """The family, if the class is transformers' own and is called `<Family><kind>`; else None."""
    name = type(part).__name__
    is_own = type(part).__module__.startswith("transformers.models.")
    return name.removesuffix(kind) if is_own and name.endswith(kind) else None


def _plain_linear(original: nn.Module, name: str) -> Linear | None:
    """The linear layer of this name, or None if it is missing or a model's own kind."""
    linear = original._modules.get(name)
    if isinstance(linear, CodedLinear):
        return linear
    return linear if isinstance(linear, nn.Linear) and is_plain(linear) else None


def _merged_linears(original: nn.Module, *names: str) -> Linear | None:
    linears = [linear for name in names if (linear := _plain_linear(original, name)) is not None]
    return merged_linear(linears) if len(linears) == len(names) else None


def _merged_qkv(original: nn.Module) -> Linear | None:
    """One projection for query, key and value, or None, for example if there are unknown parts."""
    other_names = {*OUTPUT_NAMES, *chain(*NORM_NAMES)}
    children = {
        name
        for name, part in original._modules.items()
        if name not in other_names and not isinstance(part, nn.Dropout)
    }
    if children == {"q_proj", "k_proj", "v_proj"}:
        return _merged_linears(original, "q_proj", "k_proj", "v_proj")
    return _plain_linear(original, "qkv_proj") if children == {"qkv_proj"} else None


def _head_norms(original: nn.Module) -> tuple[FusedRMSNorm, FusedRMSNorm] | None:
    for names in NORM_NAMES:
        query, key = map(original._modules.get, names)
        if not isinstance(query, FusedRMSNorm) or not isinstance(key, FusedRMSNorm):
            continue
        are_alike = (query.offset, query.rounds_first) == (key.offset, key.rounds_first)
        return (query, key) if are_alike and query.weight.shape == key.weight.shape else None
    return None


def _has_known_norms(original: nn.Module) -> bool:
    """True if there are no q and k norms, or if `_head_norms` returns them."""
    has_none = all(original._modules.get(name) is None for name in chain(*NORM_NAMES))
    return has_none or _head_norms(original) is not None


def _matches(original: nn.Module, qkv: Linear, reference: AttentionCall, *, is_gated: bool) -> bool:
    """Whether `qkv` computes exactly the heads of `reference`, and a gate for each query if it
    `is_gated`, and no other weight takes part."""
    num_heads, num_kv_heads, size = (
        reference.query.shape[1],
        reference.key.shape[1],
        reference.query.shape[2],
    )
    if (
        reference.key.shape != reference.value.shape
        or reference.key.shape[2] != size
        or size > MAX_HEAD_SIZE
    ):
        return False
    norms = _head_norms(original)
    if norms is not None and norms[0].weight.shape[0] != size:
        return False
    sinks = reference.spec.sinks
    if (sinks is None) != ("sinks" not in original._parameters):
        return False
    if sinks is not None and sinks is not original._parameters["sinks"]:
        return False
    has_others = bool(original._parameters.keys() - {"sinks"}) or bool(original._buffers)
    num_queries = 2 * num_heads if is_gated else num_heads
    return not has_others and qkv.out_features == (num_queries + 2 * num_kv_heads) * size
