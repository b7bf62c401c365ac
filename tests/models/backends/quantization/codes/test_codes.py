"""Codes are those of the file, and products with them are near float64."""

import gguf
import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.quantization.codes.code_products import dequantise_into
from stonechat_models.backends.quantization.codes.coded_linear import (
    CodedEmbedding,
    CodedLinear,
    merged_coded,
)
from stonechat_models.backends.quantization.codes.gguf_codes import GGUF_TYPES, gguf_codes
from stonechat_models.backends.quantization.scratch import Scratch
from tests.models.dequantised import dequantised
from tests.models.random_codes import random_blocks, random_codes
from tests.nightly import nightly

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = DEVICE.type == "cpu"
N, K = 37, 512
SIZES = (1, 2, 3, 4, 5, 130)
"""Rows of activations: each number up to the most that are multiplied by codes, and more."""
FORMAT_BYTES = {"Q4_K": 4, "Q5_K": 4}
"""What a block takes more than in the file."""


def blocks_and_weight(type_name: str, n: int = N, k: int = K, seed: int = 0):
    """Random blocks on the device, and float64 weights from the `gguf` package."""
    blocks = random_blocks(type_name, n, k, torch.device("cpu"), seed, size=k**-0.5)
    values = gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[type_name])
    return blocks.to(DEVICE), torch.from_numpy(values).double()


def random_rows(num_rows: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_rows)
    return torch.randn(num_rows, k, generator=generator).to(dtype)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.cpu().double() - expected).norm() / expected.norm())


def tolerance(dtype: torch.dtype) -> float:
    """The interpreter cuts bfloat16 off instead of rounding."""
    if dtype is torch.float32:
        return 5e-5
    return 8e-3 if INTERPRETED else 4e-3


@pytest.mark.parametrize("type_name", sorted(GGUF_TYPES))
def test_weights_are_those_of_the_file(type_name):
    blocks, weight = blocks_and_weight(type_name)
    codes = gguf_codes(type_name, blocks)
    assert error(dequantised(codes), weight) < 1e-7
    index = torch.tensor([36, 0, 0, 17])
    rows = torch.empty(4, K, device=DEVICE)
    dequantise_into(rows, codes, index=index.to(DEVICE))
    assert error(rows, weight[index]) < 1e-7
    block_count = N * K // (256 if type_name.endswith("_K") else 32)
    assert codes.num_bytes == blocks.nbytes + FORMAT_BYTES.get(type_name, 0) * block_count


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, *nightly(torch.float32)], ids=["bfloat16", "float32"]
)
@pytest.mark.parametrize("type_name", sorted(GGUF_TYPES))
def test_products_are_near_float64(type_name, dtype):
    blocks, weight = blocks_and_weight(type_name)
    bias = random_rows(1, N, dtype)[0]
    scratch = Scratch(DEVICE, dtype)
    parameter = torch.nn.Parameter(bias.to(DEVICE), requires_grad=False)
    layer = CodedLinear([gguf_codes(type_name, blocks)], parameter, scratch, dtype)
    scratch._memory = scratch._memory[: 10 * K]  # several parts
    for size in SIZES:
        x = random_rows(size, K, dtype)
        expected = x.double() @ weight.T + bias.double()
        actual = layer(x.to(DEVICE)[None])
        assert actual.shape == (1, size, N)
        assert actual.dtype is dtype
        assert error(actual[0], expected) < tolerance(dtype), size


def test_rows_of_activations_need_not_be_contiguous():
    """And there may be none: a step that ends no prompt needs no logits."""
    codes = random_codes("Q4_K", 8, 256, DEVICE)
    layer = CodedLinear([codes], None, Scratch(DEVICE, torch.float32), torch.float32)
    wide = random_rows(3, 512, torch.float32).to(DEVICE)
    for x in (wide[:, :256], wide[:, ::2], wide[::2, 256:], wide[:0, :256]):
        torch.testing.assert_close(layer(x), x.double() @ dequantised(layer).double().T, **NEAR)


NEAR = {"check_dtype": False, "rtol": 1e-3, "atol": 2e-3}


def test_merged_layers_give_the_outputs_of_their_parts():
    """Neighbours of one type are one matrix. The biases are joined too."""
    scratch = Scratch(DEVICE, torch.float32)
    kinds = (("Q4_K", 16), ("Q4_K", 8), ("Q6_K", 8), ("Q4_K", 4))
    for has_bias in (False, True):
        layers = []
        for seed, (name, n) in enumerate(kinds):
            bias = torch.nn.Parameter(torch.randn(n, device=DEVICE)) if has_bias else None
            codes = random_codes(name, n, 256, DEVICE, seed)
            layers.append(CodedLinear([codes], bias, scratch, torch.float32))
        merged = merged_coded(layers)
        assert merged is not None
        assert [part.shape[0] for part in merged.parts] == [24, 8, 4]
        x = random_rows(3, 256, torch.float32).to(DEVICE)
        expected = torch.cat([layer(x) for layer in layers], dim=1)
        torch.testing.assert_close(merged(x), expected)
        assert merged.num_bytes == sum(layer.num_bytes for layer in layers)


def test_layers_that_cannot_be_merged():
    scratch = Scratch(DEVICE, torch.float32)
    layer = CodedLinear([random_codes("Q4_K", 8, 256, DEVICE)], None, scratch, torch.float32)
    wider = CodedLinear([random_codes("Q4_K", 8, 512, DEVICE)], None, scratch, torch.float32)
    bias = torch.nn.Parameter(torch.zeros(8, device=DEVICE))
    biased = CodedLinear(layer.parts, bias, scratch, torch.float32)
    order = torch.arange(256, device=DEVICE)
    ordered = CodedLinear(layer.parts, None, scratch, torch.float32, order)
    for other in (wider, biased, ordered):
        assert merged_coded([layer, other]) is None


def test_columns_in_another_order():
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    codes = random_codes("Q8_0", 8, 256, DEVICE)
    layer = CodedLinear([codes], None, Scratch(DEVICE, torch.float32), torch.float32, order)
    x = random_rows(2, 256, torch.float32).to(DEVICE)
    weight = dequantised(layer)
    assert not torch.equal(weight, dequantised(codes))
    torch.testing.assert_close(layer(x), x @ weight.T, **NEAR)


def test_an_embedding_looks_up_rows():
    codes = random_codes("Q6_K", 40, 256, DEVICE)
    ids = torch.tensor([[3, 39, 0], [3, 3, 7]], device=DEVICE)
    for scale in (None, 16.0):
        embedding = CodedEmbedding(codes, torch.float32, scale)
        expected = dequantised(codes)[ids] * (scale or 1.0)
        torch.testing.assert_close(embedding(ids), expected)


def test_the_stand_in_of_a_weight_gives_nan():
    layer = CodedLinear(
        [random_codes("Q4_K", 8, 256, DEVICE)], None, Scratch(DEVICE, torch.float32), torch.float32
    )
    assert layer.weight.shape == (8, 256)
    assert layer.weight.untyped_storage().nbytes() == 4
    assert torch.nn.functional.linear(torch.ones(1, 256, device=DEVICE), layer.weight).isnan().all()
