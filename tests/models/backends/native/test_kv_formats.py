"""Models with an int8 KV cache, beside one in bfloat16."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stonechat_models.backends.native import footprint, supports
from stonechat_models.checkpoint.headers import ModelHeaders, read_headers
from stonechat_models.config import EngineConfig
from tests.models.backends.native.native_helpers import (
    BLOCK_SIZE,
    NUM_BLOCKS,
    load_native,
    make_batch,
    make_model,
    random_ids,
)
from tests.models.backends.native.test_model import reference_logits

IDS = random_ids(330)
BLOCKS = [*range(40, 61)]


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).square().mean().sqrt() / expected.std())


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "phi3", "lfm2"])
def test_logits_are_close_to_those_of_float32(family: str, tmp_path: Path) -> None:
    module, files = make_model(family, tmp_path)
    model = load_native(files, kv_cache_dtype="int8")
    actual = model.forward(make_batch([(IDS, 0, BLOCKS)], all_rows=True))
    assert 1e-4 < error(actual, reference_logits(module, IDS)) < 0.05


def test_a_row_has_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    _, files = make_model("qwen2-window", tmp_path)
    model = load_native(files, kv_cache_dtype="int8", quantize="int8")
    expected = model.forward(make_batch([(IDS, 0, BLOCKS)], all_rows=True))
    others = (random_ids(37, 1), 0, [1, 2, 3])
    for start in range(0, len(IDS), 110):
        batch = [others, (IDS[start : start + 110], start, [*range(5, 26)])]
        assert torch.equal(model.forward(make_batch(batch))[1], expected[start + 109])
    model.copy_blocks([(5 + i, 30 + i) for i in range(21)])
    last = (IDS[-1:], len(IDS) - 1, [*range(30, 51)])
    assert torch.equal(model.forward(make_batch([last]))[0], expected[-1])


@pytest.mark.parametrize("name", ["auto", "bfloat16", "int8"])
def test_bytes_are_those_of_the_cache(name: Any, tmp_path: Path) -> None:
    _, files = make_model("qwen3", tmp_path)
    model = load_native(files, kv_cache_dtype=name)
    elements = 4 * 2 * 2 * 96  # layers, keys and values, heads, head size
    expected = elements + elements // 96 * 2 if name == "int8" else elements * 2
    assert model.info.kv_bytes_per_token == expected
    arena = model.model._kv_cache._arena.array  # type: ignore[attr-defined]
    assert 0 <= arena.size - expected * NUM_BLOCKS * BLOCK_SIZE < 1 << 16
    config = EngineConfig(model=str(tmp_path), kv_cache_dtype=name)
    headers: ModelHeaders = read_headers(config, lambda line: None)
    assert supports(headers, config) is None
    assert footprint(headers, config).kv_bytes_per_token == expected


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_few_large_dimensions_of_keys_do_not_spoil_the_others(
    family: str, tmp_path: Path
) -> None:
    """Biases as in Qwen 2, or norms of keys, far above the rest."""
    module, files = make_model(family, tmp_path)
    for layer in module.model.layers:
        attention, size = layer.self_attn, layer.self_attn.head_dim
        for d in (3, 3 + size // 2):  # a rotary pair
            if family == "qwen2":
                attention.k_proj.bias.data[d::size] += 100.0
                attention.q_proj.weight.data[d::size] /= 100.0
                attention.q_proj.bias.data[d::size] /= 100.0
            else:
                attention.k_norm.weight.data[d] *= 100.0
                attention.q_norm.weight.data[d] /= 100.0
    module.save_pretrained(tmp_path)
    model = load_native(files, kv_cache_dtype="int8")
    actual = model.forward(make_batch([(IDS, 0, BLOCKS)], all_rows=True))
    assert error(actual, reference_logits(module, IDS)) < 0.08
