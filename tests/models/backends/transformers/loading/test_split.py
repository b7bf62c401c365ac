"""What transformers' plan splits, read before anything is loaded."""

import pytest
from torch import nn

from stonechat_models import UnsupportedModelError
from stonechat_models.backends.transformers.loading.split import (
    SplitWeight,
    empty_split_module,
    refuse_whole_weights,
    splits_keys,
    splits_layers,
    splits_of,
    uneven_weights,
)
from stonechat_models.checkpoint.hf_config import parse_config
from tests.models.tiny_models import tiny_config


def module_of(family: str, **changes) -> nn.Module:
    return empty_split_module(parse_config(tiny_config(family, **changes).to_dict(), family))


def test_rows_and_columns_of_a_llama_are_split():
    splits = splits_of(module_of("llama", attention_bias=True))
    layer = "model.layers.1."
    expected = {
        "self_attn.q_proj.weight": 32,
        "self_attn.k_proj.weight": 16,
        "self_attn.k_proj.bias": 16,
        "self_attn.o_proj.weight": 32,
        "mlp.gate_proj.weight": 48,
        "mlp.down_proj.weight": 48,
    }
    assert {name: splits[layer + name].size for name in expected} == expected
    assert splits["lm_head.weight"].size == 211
    assert f"{layer}self_attn.o_proj.bias" not in splits  # it is added once
    assert not any("norm" in name for name in splits)
    assert splits_keys(splits)
    assert splits_layers(splits)


def test_gate_and_up_of_experts_are_split_each():
    splits = splits_of(module_of("qwen3_moe"))
    gate_up = splits["model.layers.0.mlp.experts.gate_up_proj"]
    assert (gate_up.size, gate_up.num_groups) == (48, 2)
    assert gate_up.is_even(4)
    assert not SplitWeight("gate_up", 12, num_groups=2).is_even(4)
    assert "model.layers.0.mlp.gate.weight" not in splits


def test_gathered_heads_leave_the_cache_whole():
    assert not splits_keys(splits_of(module_of("phi3")))


def test_what_is_not_even_is_named():
    splits = splits_of(module_of("llama", vocab_size=212))
    assert not list(uneven_weights(splits, 2))
    assert any("up_proj.weight has 48" in problem for problem in uneven_weights(splits, 5))


def test_weights_that_are_loaded_whole_are_refused():
    """Their layers would add up, or gather, what each rank has computed in whole."""
    with pytest.raises(UnsupportedModelError, match=r"plan to split .* but loads it whole"):
        refuse_whole_weights(module_of("llama"), 2)
    refuse_whole_weights(nn.Linear(2, 2), 2)  # no plan
