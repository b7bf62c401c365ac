"""Parts that only resemble the known ones are not replaced."""

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

pytest.importorskip("triton")

from stonechat_models.backends.transformers.fused.modules import FusedRMSNorm, MergedMLP
from stonechat_models.backends.transformers.fused.parity_check import (
    Call,
    ParityContext,
    agree,
    output_of,
    record_calls,
)
from stonechat_models.backends.transformers.fused.recognise import (
    fused_attention,
    fused_layer,
    fused_norm,
    is_known_attention,
    is_known_layer,
    merged_mlp,
)
from tests.models.tiny_models import tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 32


class OddRMSNorm(LlamaRMSNorm):
    """Named like a norm, but it computes something else."""

    def forward(self, hidden):
        return super().forward(hidden) * 1.5


class Mlp(nn.Module):
    def __init__(self, activation=nn.functional.silu, num_down=48):
        super().__init__()
        self.gate_proj = nn.Linear(SIZE, 48, bias=False)
        self.up_proj = nn.Linear(SIZE, 48, bias=False)
        self.down_proj = nn.Linear(num_down, SIZE, bias=False)
        self.activation = activation

    def forward(self, x):
        inner = self.activation(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(inner[..., : self.down_proj.in_features])


@torch.inference_mode()
def test_a_norm_is_replaced_only_by_the_same_numbers():
    norm = LlamaRMSNorm(SIZE).to(DEVICE)
    assert isinstance(fused_norm(norm), FusedRMSNorm)
    assert fused_norm(OddRMSNorm(SIZE).to(DEVICE)) is None
    assert fused_norm(fused_norm(norm)) is None
    assert fused_norm(nn.LayerNorm(SIZE).to(DEVICE)) is None
    assert fused_norm(LlamaRMSNorm(SIZE).to("meta")) is None


@torch.inference_mode()
def test_a_norm_must_have_one_weight_and_a_number_as_epsilon():
    for change in (
        {"weight": nn.Parameter(torch.ones(2, SIZE))},
        {"weight": None},
        {"variance_epsilon": torch.tensor(1e-6)},
        {"variance_epsilon": None},
    ):
        norm = LlamaRMSNorm(SIZE).to(DEVICE)
        for name, value in change.items():
            setattr(norm, name, value)
        assert fused_norm(norm) is None


@torch.inference_mode()
def test_an_mlp_is_replaced_only_by_the_same_numbers():
    torch.manual_seed(0)
    for activation in (nn.functional.silu, lambda x: nn.functional.gelu(x, approximate="tanh")):
        merged = merged_mlp(Mlp(activation).to(DEVICE))
        assert isinstance(merged, MergedMLP)
        assert merged_mlp(merged) is None
    assert merged_mlp(Mlp(nn.functional.relu).to(DEVICE)) is None
    assert merged_mlp(Mlp(num_down=24).to(DEVICE)) is None
    without_up = Mlp().to(DEVICE)
    without_up.up_proj = nn.Identity()
    assert merged_mlp(without_up) is None


def test_only_classes_of_transformers_are_known():
    class LlamaAttention(nn.Module):
        pass

    class LlamaDecoderLayer(nn.Module):
        pass

    layer = tiny_model("llama").model.layers[0]
    assert is_known_attention(layer.self_attn)
    assert is_known_layer(layer)
    assert not is_known_attention(LlamaAttention())
    assert not is_known_layer(LlamaDecoderLayer())
    assert not is_known_attention(layer)


@torch.inference_mode()
def recorded_attention(model):
    name = "model.layers.0.self_attn"
    calls = record_calls(model, [name])
    return model.get_submodule(name), calls[name]


def with_other_child(attention):
    attention.extra = nn.Linear(SIZE, SIZE)


def with_other_weight(attention):
    attention.scale = nn.Parameter(torch.ones(1))


def with_unknown_norms(attention):
    attention.q_norm = attention.k_norm = nn.LayerNorm(8)


def with_lone_norm(attention):
    attention.q_norm = FusedRMSNorm(nn.Parameter(torch.ones(8)), 1e-6, 0.0, True)


def with_other_output(attention):
    attention.o_proj = nn.Sequential(attention.o_proj)


def with_scaled_output(attention):
    inner = attention.forward

    def forward(*arguments, **options):
        output, weights = inner(*arguments, **options)
        return output * 2.0, weights

    attention.forward = forward


def with_scaled_queries(attention):
    attention.q_proj.register_forward_hook(lambda module, inputs, output: output * 2.0)


def with_no_pair(attention):
    inner = attention.forward
    attention.forward = lambda *arguments, **options: inner(*arguments, **options)[0]


@pytest.mark.parametrize(
    "change",
    [
        with_other_child,
        with_other_weight,
        with_unknown_norms,
        with_lone_norm,
        with_other_output,
        with_scaled_output,
        with_scaled_queries,
        with_no_pair,
    ],
)
@torch.inference_mode()
def test_attention_with_anything_else_is_not_replaced(change):
    model = tiny_model("llama").to(DEVICE)
    attention, call = recorded_attention(model)
    assert fused_attention(attention, call) is not None
    change(attention)
    assert fused_attention(attention, call) is None


@torch.inference_mode()
def test_a_layer_of_unknown_parts_is_not_replaced():
    model = tiny_model("llama").to(DEVICE)
    name = "model.layers.0"
    call = record_calls(model, [name])[name]
    layer = model.get_submodule(name)
    assert fused_layer(layer, call) is None  # its norms and attention are its own
    for part in ("input_layernorm", "post_attention_layernorm"):
        setattr(layer, part, fused_norm(getattr(layer, part)))
    assert fused_layer(layer, call) is None  # its attention is its own
    attention, attention_call = recorded_attention(tiny_model("llama").to(DEVICE))
    layer.self_attn = fused_attention(attention, attention_call)
    assert fused_layer(layer, call) is not None
    layer.scale = nn.Parameter(torch.ones(1))
    assert fused_layer(layer, call) is None


def test_agreement_needs_one_dtype_one_shape_and_near_numbers():
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert agree(rows, rows.clone())
    assert not agree(rows, rows * 1.01)
    assert not agree(rows, rows.double())
    assert not agree(rows, rows[:2])
    assert not agree(rows, None)
    assert not agree((rows,), rows)


def test_a_part_that_cannot_run_has_no_output():
    assert output_of(nn.Linear(2, 2), torch.zeros(1, 3)) is None
    assert Call({}).run(nn.Linear(2, 2), torch.zeros(1, 2), ParityContext()) is None


def test_calls_are_recorded_only_of_models_that_run():
    model = tiny_model("llama")
    assert record_calls(model, []) == {}
    assert record_calls(nn.Linear(2, 2), ["x"]) == {}
    calls = record_calls(model, ["model.layers.0.mlp", "model.layers.1.self_attn"])
    assert calls["model.layers.0.mlp"].arguments == {}
    assert "position_embeddings" in calls["model.layers.1.self_attn"].arguments

    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("needs a kernel")

    model.model.layers[1].mlp = Broken()
    assert record_calls(model, ["model.layers.0.mlp"]) == {}
    assert not model.model.layers[0].mlp._forward_pre_hooks
