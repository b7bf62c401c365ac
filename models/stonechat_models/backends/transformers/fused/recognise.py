"""Which parts of a model are known, and what would take their place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from stonechat_models.backends.transformers.fused.attention import FusedAttention
from stonechat_models.backends.transformers.fused.layer import FusedDecoderLayer
from stonechat_models.backends.transformers.fused.linears import is_plain, merged_linear
from stonechat_models.backends.transformers.fused.modules import FusedRMSNorm, MergedMLP
from stonechat_models.backends.transformers.fused.parity_check import (
    PARITY_ROWS,
    Attended,
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
        "SeedOss",
        "SmolLM3",
        "SolarOpen",
    }
)
"""Families of transformers whose layers are norm, attention, add, norm, MLP, add and no more."""
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
"""Families of transformers whose attention does nothing that a trial on random numbers could miss,
such as clipping, or scaling by the position."""
NORM_VARIANTS = ((0.0, True), (1.0, False), (0.0, False))
"""(offset of the weight, whether the normalised row is rounded first) of the known families."""
LAYER_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
MAX_HEAD_SIZE = 256


def fused_norm(norm: nn.Module) -> nn.Module | None:
    """For an RMS norm of a known kind."""
    weight = getattr(norm, "weight", None)
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if "RMSNorm" not in type(norm).__name__ or isinstance(norm, FusedRMSNorm):
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
    """For an MLP of gate, up and down, or with the first two as one already."""
    if isinstance(mlp, MergedMLP):
        return None
    down = _plain(mlp, "down_proj")
    merged = _plain(mlp, "gate_up_proj") or _merged(mlp, "gate_proj", "up_proj")
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
    """By its class; `fused_attention` looks closer."""
    return _family(part, "Attention") in ATTENTIONS


def is_known_layer(part: nn.Module) -> bool:
    """By its class; `fused_layer` looks closer."""
    return _family(part, "DecoderLayer") in LLAMA_LIKE


def fused_attention(own: nn.Module, call: Call) -> nn.Module | None:
    """Its norms of heads, if any, must have been replaced already."""
    qkv, output = _merged_qkv(own), _plain(own, "o_proj")
    if qkv is None or output is None or not _has_known_norms(own):
        return None
    hidden = random_rows((1, ParityContext().query_start[-1], qkv.in_features), qkv.weight)
    context = ParityContext()
    expected = call.run(own, hidden, context)
    if len(context.attended) != 1 or not isinstance(expected, tuple):
        return None
    asked = context.attended[0]
    if not _matches(own, qkv, asked):
        return None
    angles = call.arguments["position_embeddings"][0].shape[-1]
    for rotary_size in (angles, 2 * angles, 0):
        if rotary_size > asked.query.shape[2] or rotary_size % 2:
            continue
        fused = FusedAttention(
            qkv,
            output,
            layer=asked.layer,
            num_heads=asked.query.shape[1],
            num_kv_heads=asked.key.shape[1],
            head_size=asked.query.shape[2],
            rotary_size=rotary_size,
            norms=_head_norms(own),
            spec=asked.spec,
        )
        context = ParityContext(asked.output)
        found = call.run(fused, hidden, context)
        if not isinstance(found, tuple) or not agree(expected[0], found[0]):
            continue
        seen = context.attended[0]
        if all(
            agree(getattr(asked, name), getattr(seen, name)) for name in ("query", "key", "value")
        ):
            return fused
    return None


def fused_layer(own: nn.Module, call: Call) -> nn.Module | None:
    """Its parts must have been replaced already."""
    parts: dict[str, Any] = {
        name: part for name, part in own._modules.items() if not isinstance(part, nn.Dropout)
    }
    if parts.keys() != LAYER_PARTS or own._parameters or own._buffers or "_hf_hook" in own.__dict__:
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
    with _without_experts(own, fused, hidden):
        expected = call.run(own, hidden.clone(), ParityContext())
        found = call.run(fused, hidden.clone(), ParityContext())
    return fused if agree(expected, found) else None


class _Same(nn.Module):
    """Gives what it is given, alone or as the first of two."""

    def __init__(self, is_pair: bool) -> None:
        super().__init__()
        self.is_pair = is_pair

    def forward(self, x: torch.Tensor) -> object:
        return (x, None) if self.is_pair else x


@contextmanager
def _without_experts(
    own: nn.Module, fused: FusedDecoderLayer, hidden: torch.Tensor
) -> Iterator[None]:
    """A router turns a rounding into another choice, so a trial of the layer leaves it out."""
    mlp = fused.mlp
    if not isinstance(mlp, MergedMLP):
        own.mlp = fused.mlp = _Same(isinstance(output_of(mlp, hidden), tuple))
    yield
    own.mlp = fused.mlp = mlp


def _family(part: nn.Module, kind: str) -> str | None:
    """Of a class of transformers' own called `<Family><kind>`."""
    name = type(part).__name__
    is_own = type(part).__module__.startswith("transformers.models.")
    return name.removesuffix(kind) if is_own and name.endswith(kind) else None


def _plain(own: nn.Module, name: str) -> nn.Linear | None:
    """Its linear layer of this name, if it has one and it is PyTorch's own."""
    linear = own._modules.get(name)
    return linear if isinstance(linear, nn.Linear) and is_plain(linear) else None


def _merged(own: nn.Module, *names: str) -> nn.Linear | None:
    linears = [linear for name in names if (linear := _plain(own, name)) is not None]
    return merged_linear(linears) if len(linears) == len(names) else None


def _merged_qkv(own: nn.Module) -> nn.Linear | None:
    """None too where there are parts that are not known."""
    known = {"o_proj", "q_norm", "k_norm"}
    children = {
        name
        for name, part in own._modules.items()
        if name not in known and not isinstance(part, nn.Dropout)
    }
    if children == {"q_proj", "k_proj", "v_proj"}:
        return _merged(own, "q_proj", "k_proj", "v_proj")
    return _plain(own, "qkv_proj") if children == {"qkv_proj"} else None


def _head_norms(own: nn.Module) -> tuple[FusedRMSNorm, FusedRMSNorm] | None:
    query, key = own._modules.get("q_norm"), own._modules.get("k_norm")
    if not isinstance(query, FusedRMSNorm) or not isinstance(key, FusedRMSNorm):
        return None
    are_alike = (query.offset, query.rounds_first) == (key.offset, key.rounds_first)
    return (query, key) if are_alike and query.weight.shape == key.weight.shape else None


def _has_known_norms(own: nn.Module) -> bool:
    """That is, none, or some that `_head_norms` gives."""
    has_none = own._modules.get("q_norm") is None and own._modules.get("k_norm") is None
    return has_none or _head_norms(own) is not None


def _matches(own: nn.Module, qkv: nn.Linear, asked: Attended) -> bool:
    """Whether the merged projection gives the heads that were attended, and nothing else."""
    num_heads, num_kv_heads, size = asked.query.shape[1], asked.key.shape[1], asked.query.shape[2]
    if asked.key.shape != asked.value.shape or asked.key.shape[2] != size or size > MAX_HEAD_SIZE:
        return False
    norms = _head_norms(own)
    if norms is not None and norms[0].weight.shape[0] != size:
        return False
    sinks = asked.spec.sinks
    if (sinks is None) != ("sinks" not in own._parameters):
        return False
    if sinks is not None and sinks is not own._parameters["sinks"]:
        return False
    has_others = bool(own._parameters.keys() - {"sinks"}) or bool(own._buffers)
    return not has_others and qkv.out_features == (num_heads + 2 * num_kv_heads) * size
