"""Small floats as codes are exact, and products with them are near float64."""

import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.quantization.codes.code_products import dequantise_into
from stonechat_models.backends.quantization.codes.coded_linear import CodedLinear, merged_coded
from stonechat_models.backends.quantization.codes.codes import Codes
from stonechat_models.backends.quantization.codes.float_codes import float4_codes, float8_codes
from stonechat_models.backends.quantization.scratch import Scratch
from tests.models.dequantised import dequantised
from tests.models.packed_writers import E2M1, e4m3_values

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
N, K = 16, 512
SIZES = (1, 2, 3, 4, 5)
NUMBERS = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8)
"""The bits of all float8 numbers."""
ROUNDED = {"rtol": 2.5e-7, "atol": 0.0}
"""Two roundings of float32: of a scale times its factor, and of the number times both."""
GROUPS = {"whole row": K, "128": 128, "last is shorter": 384, "32": 32}


def random_bits(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return NUMBERS[torch.randint(len(NUMBERS), shape, generator=generator)]


def float8(group: int, dtype: torch.dtype = torch.float32) -> tuple[Codes, torch.Tensor]:
    """Codes, and the float64 weight that they stand for."""
    bits = random_bits(N, K)
    scales = (torch.rand(N, -(-K // group)) + 0.5).mul(0.01).to(dtype)
    codes = float8_codes(bits.to(DEVICE), scales.to(DEVICE), group)
    assert codes is not None
    wide = scales.double()[:, torch.arange(K) // group]
    return codes, torch.from_numpy(e4m3_values(bits)).double() * wide


def float4(group: int, factor: float | None) -> tuple[Codes, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    packed = torch.randint(256, (N, K // 2), dtype=torch.uint8, generator=generator)
    if factor is None:
        scales = torch.randint(110, 130, (N, K // group), dtype=torch.uint8, generator=generator)
        values = torch.exp2(scales.double() - 127)
    else:
        scales = random_bits(N, K // group)
        values = torch.from_numpy(e4m3_values(scales)).double() * factor
    codes = float4_codes(packed.to(DEVICE), scales.to(DEVICE), factor)
    assert codes is not None
    bits = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)
    numbers = torch.tensor(E2M1, dtype=torch.float64)[bits.long()]
    return codes, numbers * values.repeat_interleave(group, 1)


CASES = {
    **{f"float8, {name}": lambda g=group: float8(g) for name, group in GROUPS.items()},
    "float8, bfloat16 scales": lambda: float8(128, torch.bfloat16),
    "float4, powers of two": lambda: float4(32, None),
    "float4, float8 scales": lambda: float4(16, 0.003),
    "float4, float8 scales of 64": lambda: float4(64, 3.0),
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_exact(name):
    codes, weight = CASES[name]()
    torch.testing.assert_close(dequantised(codes).cpu(), weight.float(), **ROUNDED)
    index = torch.tensor([5, 0, 0, N - 1])
    rows = torch.empty(4, K, device=DEVICE)
    dequantise_into(rows, codes, index=index.to(DEVICE))
    torch.testing.assert_close(rows.cpu(), weight[index].float(), **ROUNDED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_products_are_near_float64(name, dtype):
    codes, weight = CASES[name]()
    layer = CodedLinear([codes], None, Scratch(DEVICE, dtype), dtype)
    for size in SIZES:
        x = torch.randn(size, K, generator=torch.Generator().manual_seed(size)).to(dtype)
        expected = x.double() @ weight.T
        actual = layer(x.to(DEVICE)).cpu().double()
        error = float((actual - expected).norm() / expected.norm())
        assert error < (5e-5 if dtype is torch.float32 else 8e-3), size


def test_merged_layers_keep_the_factor_of_each():
    scratch = Scratch(DEVICE, torch.float32)
    parts = [float4(16, factor) for factor in (0.5, 0.01)]
    merged = merged_coded([CodedLinear([c], None, scratch, torch.float32) for c, _ in parts])
    assert merged is not None
    assert len(merged.parts) == 1
    expected = torch.cat([weight for _, weight in parts]).float()
    torch.testing.assert_close(dequantised(merged).cpu(), expected, **ROUNDED)


def test_matrices_that_have_no_codes():
    bits, one = random_bits(N, K), torch.ones(N, 1)
    assert float8_codes(bits[:, :48], one, 48) is None
    assert float8_codes(bits, torch.ones(N, 32), 16) is None
    for nan in (127, 255):
        broken = bits.clone()
        broken[3, 7] = nan
        assert float8_codes(broken, one, K) is None
        assert float4_codes(broken, broken[:, :64], 1.0) is None
    assert float4_codes(bits, bits[:, :64], None) is None  # exponents of 16 columns
    assert float4_codes(bits[:, :24], bits[:, :3], 1.0) is None
    assert float4_codes(bits, bits[:, :30], 1.0) is None
