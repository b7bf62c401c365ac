"""Products with quantised experts equal those with the weights that the codes stand for."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from stonechat_models.backends.quantization.codes.gguf_codes import GGUF_TYPES
from stonechat_models.backends.transformers.fused.moe import expert_kernels as kernels
from stonechat_models.backends.transformers.fused.moe.coded_experts import (
    CODED_TILES,
    FLOAT32_CODED_TILES,
    CodedExpertLinear,
    Rows,
)
from stonechat_models.backends.transformers.fused.moe.experts import (
    FLOAT32_TILES,
    TILES,
    Activation,
    ExpertLinear,
    FusedExperts,
    tiles_of,
)
from tests.models.dequantised import dequantised
from tests.models.random_codes import random_codes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
EXPERTS, TOP_K, INNER = 2, 1, 64


def gated(rows):
    return Activation(kernels.SILU.value, is_interleaved=rows is Rows.PAIRS, limit=7.0, offset=1.0)


def linears(type_name, outputs, inputs, dtype, rows, seed, has_bias):
    """The same matrices as codes, and as floats in the order that `ExpertLinear` has."""
    n = EXPERTS * outputs
    codes = random_codes(type_name, n, inputs, DEVICE, seed, size=inputs**-0.5)
    floats = dequantised(codes)
    if rows is Rows.APART:
        floats = floats.view(2, EXPERTS, -1, inputs).transpose(0, 1)
    weight = nn.Parameter(floats.reshape(EXPERTS, outputs, inputs).to(dtype))
    bias = None
    if has_bias:
        numbers = torch.randn(EXPERTS, outputs, generator=torch.Generator().manual_seed(seed))
        bias = nn.Parameter(numbers.to(DEVICE, dtype))
    coded = CodedExpertLinear(codes, EXPERTS, bias, dtype, rows)
    return coded, ExpertLinear(weight, bias, is_transposed=False)


def check(type_name, *, dtype=torch.float32, rows=Rows.HALVES, num_tokens=3, tile=None, bias=False):
    hidden = INNER if type_name[-2:] != "_K" else 256
    inner = hidden
    coded_up, up = linears(type_name, 2 * inner, hidden, dtype, rows, 0, bias)
    coded_down, down = linears(type_name, hidden, inner, dtype, Rows.HALVES, 1, bias)
    activation = gated(rows)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(num_tokens, hidden, generator=generator).to(DEVICE, dtype)
    values, ids = torch.randn(num_tokens, EXPERTS, generator=generator).to(DEVICE).topk(TOP_K)
    with torch.inference_mode():
        arguments = (x, ids, values.softmax(dim=-1).to(dtype), tile)
        expected = FusedExperts(up, down, activation)(*arguments).float()
        actual = FusedExperts(coded_up, coded_down, activation)(*arguments).float()
    assert expected.std() > 0.1
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("type_name", sorted(GGUF_TYPES))
def test_formats(type_name):
    check(type_name)


@pytest.mark.parametrize("rows", Rows, ids=lambda rows: rows.name)
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_rows(rows, num_tokens):
    check("MXFP4", rows=rows, num_tokens=num_tokens, bias=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    check("MXFP4", dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_tiles(dtype):
    for tile in tiles_of(dtype).values():
        check("Q4_0", dtype=dtype, tile=tile, num_tokens=20)


def test_every_number_of_pairs_has_a_tile():
    assert TILES.keys() == CODED_TILES.keys()
    assert FLOAT32_TILES.keys() == FLOAT32_CODED_TILES.keys()


def test_the_weight_takes_no_memory():
    coded, plain = linears("MXFP4", 64, 64, torch.bfloat16, Rows.HALVES, 0, False)
    assert coded.weight.shape == plain.weight.shape
    assert coded.weight.untyped_storage().nbytes() == 2
    assert coded.num_bytes == EXPERTS * 64 * 64 * 17 // 32
    assert not list(coded.parameters())
