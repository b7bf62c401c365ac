"""Recognises the routers of mixtures of experts, and builds their replacements."""

from itertools import product
from typing import Any

import torch
from torch import nn

from stonechat_models.backends.transformers.fused.moe.router import FusedRouter, Scoring
from stonechat_models.backends.transformers.fused.parity_check import (
    agree,
    output_of,
    random_rows,
)

ROUTERS = frozenset(
    {
        "DeepseekV2",
        "DeepseekV3",
        "Dots1",
        "ExaoneMoe",
        "FlexOlmo",
        "Glm4Moe",
        "Glm4MoeLite",
        "Glm4vMoeText",
        "GptOss",
        "GraniteMoe",
        "GraniteMoeHybrid",
        "GraniteMoeShared",
        "Jamba",
        "KimiLinear",
        "Mellum",
        "MiniMax",
        "Mixtral",
        "NemotronH",
        "Olmoe",
        "Qwen2Moe",
        "Qwen3Moe",
        "Qwen3Next",
        "Qwen3OmniMoeThinkerText",
        "Qwen3VLMoeText",
        "Qwen3_5Moe",
        "SolarOpen",
    }
)
"""Families of transformers whose routers choose by softmax or sigmoid, with nothing that a parity
check on random numbers could miss. Those that choose groups of experts first fail it."""
ENDINGS = ("TopKRouter", "TopkRouter")
CORRECTION = "e_score_correction_bias"
PARITY_TOKENS = 24
MAX_TIES = PARITY_TOKENS // 8
"""So many tokens may choose another expert, by a rounding."""


def fused_router(module: nn.Module) -> FusedRouter | None:
    """A replacement, or None."""
    if not _is_known(module):
        return None
    weight = module._parameters["weight"]
    assert weight is not None
    rows = random_rows((PARITY_TOKENS, weight.shape[1]), weight)
    expected = output_of(module, rows)
    if not isinstance(expected, tuple) or len(expected) != 3:
        return None
    ids_first = not expected[0].is_floating_point()
    if ids_first:
        expected = expected[::-1]
    logits, routing, ids = expected
    correction = module._buffers.get(CORRECTION, module._parameters.get(CORRECTION))
    is_float32 = not torch.equal(logits, logits.to(weight.dtype))
    for uses_sigmoid, normalises in product((False, True), repeat=2):
        fused = FusedRouter(
            weight,
            Scoring(is_float32, uses_sigmoid, normalises, _scale(module), routing.dtype),
            top_k=ids.shape[1],
            bias=module._parameters.get("bias"),
            correction=correction,
            ids_first=ids_first,
        )
        actual = output_of(fused, rows)
        if ids_first and isinstance(actual, tuple):
            actual = actual[::-1]
        if _is_right(expected, actual, weight.shape[0]):
            return fused
    return None


def _is_known(module: nn.Module) -> bool:
    name, weight = type(module).__name__, module._parameters.get("weight")
    family = next((name.removesuffix(end) for end in ENDINGS if name.endswith(end)), None)
    if family not in ROUTERS or not type(module).__module__.startswith("transformers.models."):
        return False
    tensors = {**module._parameters, **module._buffers}
    if tensors.keys() - {"weight", "bias", CORRECTION} or module._modules:
        return False
    return weight is not None and weight.dim() == 2 and not weight.is_meta


def _scale(module: Any) -> float:
    return float(getattr(module, "routed_scaling_factor", 1.0))


def _is_right(expected: Any, actual: Any, num_experts: int) -> bool:
    """Whether the same experts have the same weights, apart from a few near ties."""
    if actual is None:
        return False
    dense = [
        weights.new_full((len(ids), num_experts), -1.0).scatter_(1, ids, weights)
        for _, weights, ids in (expected, actual)
    ]
    is_same = ((dense[0] < 0) == (dense[1] < 0)).all(dim=1)
    if int((~is_same).sum()) > MAX_TIES:
        return False
    return agree(dense[0][is_same], dense[1][is_same])
