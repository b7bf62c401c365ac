"""Routers of many families are replaced. Those that choose in another way are not."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from stonechat_models.backends.transformers.fused.moe.recognise_router import fused_router
from stonechat_models.backends.transformers.fused.moe.router import FusedRouter, Scoring
from tests.models.tiny_models import tiny_model
from tests.nightly import nightly

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAMILIES = ["mixtral", "qwen3_moe", "gpt_oss", "nemotron_h", "kimi_linear"]
MORE = ["qwen2_moe", "olmoe", "granitemoe", "glm4_moe", "deepseek_v2"]


def first_router(family, dtype=torch.float32, **changes):
    """The first router of a tiny model, with random biases."""
    module = tiny_model(family, **changes).to(DEVICE, dtype)
    routers = (m for m in module.modules() if type(m).__name__.lower().endswith("topkrouter"))
    router = next(routers)
    for tensor in (*router.buffers(), *router.parameters()):
        if tensor.dim() == 1:
            tensor.detach().normal_(0, 0.3)
    return router


def dense(result, num_experts):
    _, weights, ids = result
    return torch.zeros(len(ids), num_experts, device=ids.device).scatter_(1, ids, weights.float())


@pytest.mark.parametrize("family", [*FAMILIES, *nightly(*MORE)])
@torch.inference_mode()
def test_families(family):
    router = first_router(family)
    fused = fused_router(router)
    x = torch.randn(9, router.weight.shape[1], generator=torch.Generator().manual_seed(3))
    expected, actual = router(x.to(DEVICE)), fused(x.to(DEVICE))
    assert [t.dtype for t in actual] == [t.dtype for t in expected]
    if fused.ids_first:
        expected, actual = expected[::-1], actual[::-1]
    num_experts = len(router.weight)
    torch.testing.assert_close(dense(actual, num_experts), dense(expected, num_experts))
    weights = actual[1]
    if fused.correction is None:
        assert torch.equal(weights, weights.sort(dim=1, descending=True).values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("family", "is_float32"), [("qwen3_moe", False), ("glm4_moe", True)])
@torch.inference_mode()
def test_half_precision(family, is_float32, dtype):
    """The product stays in float32 where the family has it so."""
    fused = fused_router(first_router(family, dtype))
    assert fused.scoring.is_float32 is is_float32
    assert fused.weight.dtype == (torch.float32 if is_float32 else dtype)
    assert fused.scoring.dtype == (torch.float32 if is_float32 else dtype)


@torch.inference_mode()
def test_granite_may_return_its_ids_first():
    router = first_router("granitemoe")
    inner = router.forward

    def ids_first(x):
        results = inner(x)
        return results if results[2].is_floating_point() else results[::-1]

    router.forward = ids_first
    fused = fused_router(router)
    x = torch.randn(9, router.weight.shape[1], generator=torch.Generator().manual_seed(3))
    expected, actual = router(x.to(DEVICE)), fused(x.to(DEVICE))
    num_experts = len(router.weight)
    torch.testing.assert_close(dense(actual[::-1], num_experts), dense(expected[::-1], num_experts))


@torch.inference_mode()
def test_settings_of_a_family_are_found_by_its_numbers():
    fused = fused_router(first_router("qwen3_moe", norm_topk_prob=True))
    assert fused.scoring.normalises
    fused = fused_router(first_router("glm4_moe", norm_topk_prob=False, routed_scaling_factor=2.5))
    assert fused.scoring == Scoring(False, True, False, 2.5, torch.float32)


@torch.inference_mode()
def test_a_choice_by_groups_is_not_replaced():
    assert fused_router(first_router("deepseek_v3")) is None


def with_other_weight(router):
    router.scale = nn.Parameter(torch.ones(1))


def with_a_part(router):
    router.norm = nn.Identity()


def with_other_weights_of_experts(router):
    inner = router.forward
    router.forward = lambda x: (inner(x)[0], inner(x)[1] * 1.01, inner(x)[2])


def with_other_experts(router):
    inner = router.forward
    router.forward = lambda x: (inner(x)[0], inner(x)[1], (inner(x)[2] + 1) % 4)


def with_one_result(router):
    inner = router.forward
    router.forward = lambda x: inner(x)[0]


def of_another_family(router):
    router.__class__ = type("OtherTopKRouter", (type(router),), {})


@pytest.mark.parametrize(
    "change",
    [
        with_other_weight,
        with_a_part,
        with_other_weights_of_experts,
        with_other_experts,
        with_one_result,
        of_another_family,
    ],
)
@torch.inference_mode()
def test_routers_with_anything_else_are_not_replaced(change):
    router = first_router("mixtral")
    assert isinstance(fused_router(router), FusedRouter)
    change(router)
    assert fused_router(router) is None


@pytest.mark.parametrize("num_experts", [1, 3, 60, 128, 300])
@torch.inference_mode()
def test_numbers_of_experts(num_experts):
    top_k = min(8, num_experts)
    weight = torch.randn(num_experts, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    scoring = Scoring(False, False, False, 1.0, torch.float32)
    router = FusedRouter(nn.Parameter(weight), scoring, top_k=top_k)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    logits, weights, ids = router(x)
    values, expected_ids = logits.softmax(dim=-1).topk(top_k)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, values)


@torch.inference_mode()
def test_a_token_that_is_not_a_number_gets_valid_experts():
    weight = torch.randn(5, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    scoring = Scoring(False, True, True, 1.0, torch.float32)
    router = FusedRouter(nn.Parameter(weight), scoring, top_k=3)
    x = torch.ones(2, 16, device=DEVICE)
    x[1] = float("nan")
    _, _, ids = router(x)
    assert ids.min() >= 0
    assert ids.max() < 5
