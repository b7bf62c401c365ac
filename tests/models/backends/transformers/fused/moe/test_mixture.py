"""Whole blocks of a mixture, with their sum added to the residual in place."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from stonechat_models.backends.transformers.fused.moe.mixture import FusedMixture
from stonechat_models.backends.transformers.fused.moe.recognise_experts import (
    fused_experts,
    fused_mixture,
    is_experts,
)
from stonechat_models.backends.transformers.fused.moe.recognise_router import fused_router
from stonechat_models.backends.transformers.fused.recognise import merged_mlp
from tests.models.tiny_models import tiny_model
from tests.nightly import nightly

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def block_of(family):
    """The first block with experts, whose parts are fused."""
    module = tiny_model(family).to(DEVICE)
    block = next(
        part for part in module.modules() if any(is_experts(child) for child in part.children())
    )
    for name, part in block.named_children():
        fused = merged_mlp(part) or fused_experts(part) or fused_router(part)
        if fused is not None:
            setattr(block, name, fused)
    return block


@pytest.mark.parametrize(
    ("family", "has_shared"),
    [
        *(("gpt_oss", False), ("glm4_moe", True)),
        pytest.param("qwen3_moe", False, marks=pytest.mark.nightly),
        pytest.param("granitemoe", False, marks=pytest.mark.nightly),
    ],
)
@torch.inference_mode()
def test_the_output_is_added_to_the_residual(family, has_shared):
    block = block_of(family)
    mixture = fused_mixture(block)
    assert (mixture.shared_experts is not None) is has_shared
    generator = torch.Generator().manual_seed(0)
    residual, x = (torch.randn(3, 32, generator=generator).to(DEVICE) for _ in range(2))
    output = block(x[None])
    expected = residual + (output[0] if isinstance(output, tuple) else output)[0]
    actual = mixture.add_to(residual, x)
    assert actual is residual
    torch.testing.assert_close(actual, expected)
    assert fused_mixture(mixture) is None


@torch.inference_mode()
def test_a_gate_of_the_shared_mlp_is_not_known():
    assert fused_mixture(block_of("qwen2_moe")) is None


@torch.inference_mode()
def test_parts_that_are_not_fused_are_not_replaced():
    block = next(part for part in tiny_model("mixtral").modules() if hasattr(part, "experts")).to(
        DEVICE
    )
    assert fused_mixture(block) is None
    assert fused_mixture(nn.Linear(2, 2)) is None


def with_scaled_output(block):
    inner = block.forward
    block.forward = lambda x: inner(x) * 1.01


def with_weight(block):
    block.scale = nn.Parameter(torch.ones(1))


def with_another_part(block):
    block.norm = nn.Identity()


@pytest.mark.parametrize("change", [with_scaled_output, *nightly(with_weight, with_another_part)])
@torch.inference_mode()
def test_blocks_with_anything_else_are_not_replaced(change):
    block = block_of("mixtral")
    assert isinstance(fused_mixture(block), FusedMixture)
    change(block)
    assert fused_mixture(block) is None
