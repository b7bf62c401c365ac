"""Names and values of tensors, against the other definitions of both."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import rotate_half

from stonechat_models.checkpoint.gguf.layouts import split_rope_pairs
from stonechat_models.checkpoint.gguf.names import module_name
from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufTensor
from stonechat_models.checkpoint.gguf.weights import dequantize
from stonechat_models.errors import ModelLoadError, UnsupportedModelError


def file_of(architecture: str) -> GgufFile:
    return GgufFile(Path("x.gguf"), {"general.architecture": architecture}, {})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
        ("blk.12.ffn_down.weight", "model.layers.12.mlp.down_proj.weight"),
        ("blk.3.ffn_up_exps.weight", "model.layers.3.mlp.experts.up_proj.weight"),
    ],
)
def test_names_are_those_of_transformers(name: str, expected: str) -> None:
    assert module_name(file_of("qwen3moe"), name) == expected


@pytest.mark.parametrize(
    "name", ["blk.0.ssm_a.weight", "other.weight", "blk.x.attn_q.weight", "output", ""]
)
def test_an_unknown_tensor_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"x\.gguf: the tensor .* is not supported"):
        module_name(file_of("llama"), name)


def test_a_slice_has_the_values_of_the_whole() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 64)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    tensor = GgufTensor("x", "Q8_0", values.shape, gguf.quantize(values, kind))
    whole = dequantize(tensor)
    assert whole.shape == values.shape
    assert np.abs(whole - values).max() < np.abs(values).max() / 100
    for index in range(3):
        assert np.array_equal(dequantize(tensor, index), whole[index])


@pytest.mark.parametrize("type_name", ["Q8_1", "Q1_0"])
def test_a_type_that_cannot_be_converted_is_refused(type_name: str) -> None:
    tensor = GgufTensor("x", type_name, (1, 128), np.zeros((1, 160), np.uint8))
    with pytest.raises(UnsupportedModelError, match=f"weights of type {type_name} cannot"):
        dequantize(tensor)


def test_reordered_rows_rotate_as_pairs_do() -> None:
    """Llama's own code rotates neighbours; transformers rotates halves of the reordered rows."""
    num_heads, size = 2, 8
    rng = np.random.default_rng(0)
    rows, x = rng.normal(size=(num_heads * size, 5)), rng.normal(size=5)
    angles = rng.normal(size=size // 2)
    pairs = (rows @ x).reshape(num_heads, size // 2, 2)
    rotated = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)
    reordered = torch.from_numpy(split_rope_pairs(rows, num_heads) @ x).reshape(num_heads, size)
    both = torch.from_numpy(np.concatenate([angles, angles]))
    halves = reordered * both.cos() + rotate_half(reordered) * both.sin()
    np.testing.assert_allclose(halves[:, : size // 2].numpy(), rotated.real, rtol=1e-10)
    np.testing.assert_allclose(halves[:, size // 2 :].numpy(), rotated.imag, rtol=1e-10)


def test_rows_that_do_not_fit_the_heads_are_refused() -> None:
    with pytest.raises(ModelLoadError, match="do not fit the number of heads"):
        split_rope_pairs(np.zeros((12, 4)), 4)
