"""Fused modules in place of a model's own: the same numbers, and nothing replaced that differs."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from stonechat_models.fused.modules import FusedRMSNorm, MergedMLP
from stonechat_models.fused.replace import fuse_modules
from tests.models.tiny_models import VOCAB_SIZE, tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@torch.inference_mode()
def logits(module):
    ids = torch.arange(9, device=DEVICE).unsqueeze(0) * 23 % VOCAB_SIZE
    return module(input_ids=ids, use_cache=False).logits.float()


# Of each: norms a layer and one at the end; a SwiGLU block a layer where the model has one.
@pytest.mark.parametrize(
    ("family", "num_norms", "num_mlps"),
    [
        ("llama", 5, 2),
        ("qwen3", 9, 2),
        ("gemma2", 9, 0),
        ("gpt_oss", 5, 0),
        ("qwen3_moe", 9, 0),
        ("gpt_neox", 0, 0),
    ],
)
def test_logits_stay_the_same(family, num_norms, num_mlps):
    module = tiny_model(family).to(DEVICE)
    for name, parameter in module.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    expected = logits(module)
    assert fuse_modules(module) == num_norms + num_mlps
    assert sum(isinstance(m, FusedRMSNorm) for m in module.modules()) == num_norms
    assert sum(isinstance(m, MergedMLP) for m in module.modules()) == num_mlps
    torch.testing.assert_close(logits(module), expected, rtol=1e-4, atol=1e-4)
    assert fuse_modules(module) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    module = tiny_model("llama").to(DEVICE, dtype)
    expected = logits(module)
    assert fuse_modules(module) == 7
    spread = expected.std()
    assert (logits(module) - expected).abs().max() < 0.1 * spread


def test_what_differs_stays():
    class OtherRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))
            self.eps = 1e-6

        def forward(self, x):
            return 3 * self.weight * x / x.pow(2).mean(-1, keepdim=True).sqrt()

    class GeluMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(8, 16), nn.Linear(8, 16)
            self.down_proj = nn.Linear(16, 8)

        def forward(self, x):
            return self.down_proj(nn.functional.gelu(self.gate_proj(x)) * self.up_proj(x))

    module = nn.Sequential(OtherRMSNorm(), GeluMLP()).to(DEVICE)
    assert fuse_modules(module) == 0


def test_a_bias_is_merged_too():
    class BiasedMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(8, 1030), nn.Linear(8, 1030)
            self.down_proj = nn.Linear(1030, 8)

        def forward(self, x):
            return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))

    module = nn.Sequential(BiasedMLP()).to(DEVICE)
    x = torch.randn(2, 3, 8, device=DEVICE)
    expected = module(x)
    assert fuse_modules(module) == 1
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
