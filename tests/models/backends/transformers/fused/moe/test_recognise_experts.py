"""Experts of many families are replaced. Those that compute something else are not."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from stonechat_models.backends.transformers.fused.moe import expert_kernels as kernels
from stonechat_models.backends.transformers.fused.moe.experts import Activation, FusedExperts
from stonechat_models.backends.transformers.fused.moe.recognise_experts import (
    fused_experts,
    is_experts,
)
from stonechat_models.backends.transformers.fused.replace import fuse_modules
from tests.models.tiny_models import MIXTURES, tiny_model
from tests.nightly import nightly

MORE_MIXTURES = [name for name in MIXTURES if name != "deepseek_v3"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = Activation(kernels.SILU.value)
GPT_OSS = Activation(kernels.SILU.value, is_interleaved=True, alpha=1.702, limit=7.0, offset=1.0)
SQUARED = Activation(kernels.RELU_SQUARED.value, is_gated=False)


def first_experts(family):
    module = tiny_model(family).to(DEVICE)
    return next(part for part in module.modules() if is_experts(part))


@pytest.mark.parametrize(
    "family", ["mixtral", "qwen3_moe", "deepseek_v3", *nightly("qwen3_next", *MORE_MIXTURES)]
)
@torch.inference_mode()
def test_families(family):
    """`fused_experts` compares the numbers with every tile, and for a single token."""
    experts = first_experts(family)
    fused = fused_experts(experts)
    assert fused.activation == PLAIN
    assert fused.up.weight is experts.gate_up_proj
    assert fused.down.weight is experts.down_proj
    assert fused_experts(fused) is None


@pytest.mark.parametrize(("family", "expected"), [("gpt_oss", GPT_OSS), ("nemotron_h", SQUARED)])
@torch.inference_mode()
def test_other_activations(family, expected):
    experts = first_experts(family)
    for name, parameter in experts.named_parameters():
        if "bias" in name:
            parameter.normal_()
    assert fused_experts(experts).activation == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_half_precision(dtype):
    assert fused_experts(first_experts("gpt_oss").to(dtype)) is not None


@pytest.mark.parametrize(
    ("function", "kind"),
    [(nn.GELU("tanh"), kernels.GELU_TANH), (nn.GELU(), kernels.GELU), (nn.SiLU(), kernels.SILU)],
    ids=["gelu tanh", "gelu", "silu"],
)
@torch.inference_mode()
def test_the_activation_is_found_by_its_numbers(function, kind):
    experts = first_experts("mixtral")
    experts.act_fn = function
    assert fused_experts(experts).activation == Activation(kind.value)


def with_other_activation(experts):
    experts.act_fn = nn.ReLU()


def with_hidden_limit(experts):
    experts._apply_gate = lambda x: (
        experts.act_fn(x.chunk(2, -1)[0].clamp(max=9)) * x.chunk(2, -1)[1]
    )


def with_norm(experts):
    experts.has_post_expert_norm = True


def with_sharded_experts(experts):
    experts._is_expert_parallel = True


def with_other_weight(experts):
    experts.scale = nn.Parameter(torch.ones(1))


def with_other_dtype(experts):
    experts.down_proj.data = experts.down_proj.data.double()


def with_scaled_output(experts):
    inner = experts.forward
    experts.forward = lambda *arguments: inner(*arguments) * 1.01


def with_no_weights(experts):
    experts.to("meta")


@pytest.mark.parametrize(
    "change",
    [
        with_other_activation,
        with_hidden_limit,
        with_norm,
        with_sharded_experts,
        with_other_weight,
        with_other_dtype,
        with_scaled_output,
        with_no_weights,
    ],
)
@torch.inference_mode()
def test_experts_with_anything_else_are_not_replaced(change):
    experts = first_experts("mixtral")
    change(experts)
    assert fused_experts(experts) is None


def test_experts_that_stay_are_named(caplog):
    module = tiny_model("mixtral", num_hidden_layers=2).to(DEVICE)
    for layer in module.model.layers:
        layer.mlp.experts.act_fn = nn.ReLU()
    assert not fuse_modules(module)["FusedExperts"]
    assert [r.message for r in caplog.records if "MixtralExperts" in r.message] == [
        "MixtralExperts runs as in transformers, and may wait for the device"
    ]


def test_only_the_common_layout_is_known():
    module = tiny_model("llama4_text")
    assert not any(is_experts(part) for part in module.modules())
    assert fused_experts(nn.Linear(2, 2)) is None
    assert not is_experts(FusedExperts.__new__(FusedExperts))
