"""Rotary frequencies against those of transformers, and LongRoPE in whole models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from stonechat_models.backends.native.plan.rope import rotary_frequencies
from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.checkpoint.rope_length import for_length
from stonechat_models.errors import ModelLoadError
from tests.models.backends.native.native_helpers import (
    COMMON,
    ROUNDING,
    load_native,
    make_batch,
    make_model,
    random_ids,
)

ORIGINAL = 64
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 10 for i in range(16)],
    "long_factor": [1.0 + i for i in range(16)],
}
CASES = {
    "phi3": (Phi3Config, {"original_max_position_embeddings": ORIGINAL}, {}),
    "factor": (LlamaConfig, {}, {"original_max_position_embeddings": ORIGINAL, "factor": 3.0}),
    "attention": (
        LlamaConfig,
        {},
        {"original_max_position_embeddings": ORIGINAL, "attention_factor": 1.7},
    ),
    "no stretch": (LlamaConfig, {}, {"original_max_position_embeddings": 512}),
}


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_longrope_frequencies(name: str, is_long: bool) -> None:
    config_class, keys, rope_keys = CASES[name]
    config = config_class(**COMMON, **keys, rope_parameters={**LONGROPE, **rope_keys})
    model = parse_config(config.to_dict(), "config.json")
    length = 513 if is_long else None
    rotary = rotary_frequencies(for_length(model, length), head_dim=32)
    expected, scale = ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", seq_len=length)
    np.testing.assert_allclose(rotary.inverse_frequencies, expected.numpy(), rtol=1e-6)
    assert rotary.scale == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"short_factor": [1.0] * 15}, "short_factor has 15 items for 16 frequencies"),
        ({"short_factor": [0.0] * 16}, "not finite"),
        ({"short_factor": None}, "short_factor is None"),
        ({"original_max_position_embeddings": 1}, "not finite"),
        ({"factor": -1.0}, "not a number above 0"),
    ],
    ids=["too few", "zero", "absent", "length 1", "factor"],
)
def test_wrong_factors_are_refused(changes: dict[str, Any], problem: str) -> None:
    rope = {**LONGROPE, "original_max_position_embeddings": ORIGINAL, **changes}
    model = parse_config({**COMMON, "rope_parameters": rope}, "config.json")
    with pytest.raises(ModelLoadError, match=problem):
        rotary_frequencies(model, head_dim=32)


@pytest.mark.parametrize(("family", "partial"), [("phi3", 0.5), ("llama", 1.0)])
def test_models_with_longrope(family: str, partial: float, tmp_path: Path) -> None:
    """transformers chooses the long factors for a long text. They serve short ones then too."""
    rope: dict[str, Any] = {**LONGROPE, "original_max_position_embeddings": ORIGINAL}
    for name in ("short_factor", "long_factor"):
        rope[name] = rope[name][: int(16 * partial)]
    changes = {"rope_parameters": rope, "original_max_position_embeddings": ORIGINAL}
    if partial < 1:
        changes["partial_rotary_factor"] = rope["partial_rotary_factor"] = partial
    module, files = make_model(family, tmp_path, **changes)
    ids = random_ids(3 * ORIGINAL // 2)
    blocks = [7, 2, 9, 4, 11, 30]
    long = load_native(files, max_model_len=512).forward(
        make_batch([(ids, 0, blocks)], all_rows=True)
    )
    assert error(long, reference_logits(module, ids)) < ROUNDING
    part = load_native(files).forward(make_batch([(ids[:40], 0, blocks)], all_rows=True))
    assert error(part, reference_logits(module, ids[:40])) < ROUNDING
    assert error(part, long[:40]) > 0.01


def reference_logits(module: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = module(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((actual - expected) / expected.std()).square().mean().sqrt())
