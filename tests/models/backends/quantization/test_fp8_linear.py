"""float8 layers are near float64. Their kernel equals PyTorch's operators.

In the interpreter it does so bit by bit. A GPU divides float32 numbers less precisely in Triton.
"""

from pathlib import Path

import pytest
import torch

from stonechat_models.backends.quantization import fp8_linear
from stonechat_models.backends.quantization.device_support import (
    FP8,
    FP8_KV_CAPABILITY,
    LEAST_CAPABILITY,
)
from stonechat_models.backends.quantization.fp8_linear import Fp8Linear, fast_sums, quantise_rows
from tests.models.compiled import compiled_kernels
from tests.models.dequantised import dequantised

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = 0.0 if DEVICE == "cpu" else 5e-7
"""Of a division in Triton: it is off by up to two units in the last place on a GPU."""


def random_rows(num_rows: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, size, generator=generator).bfloat16()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", [64, 576, 1000])
def test_the_kernel_quantises_like_the_operators(size: int) -> None:
    pytest.importorskip("triton")
    if DEVICE == "cuda" and torch.cuda.get_device_capability() < FP8_KV_CAPABILITY:
        pytest.skip("Triton cannot convert float8 on this GPU")
    from stonechat_models.backends.quantization.fp8_triton import fp8_rows

    rows = random_rows(37, size).float()
    if DEVICE == "cpu":  # only float8 numbers: Triton's interpreter rounds others wrongly
        rows = (rows * 100).to(FP8).float()
        rows[:, 7] = 448.0
    rows = (rows * torch.logspace(-20, 100, 37, 2.0).log2().round().exp2()[:, None]).bfloat16()
    rows[5] = 0.0
    wide = torch.cat((rows, rows), dim=1).to(DEVICE)[:, :size]  # the rows are not contiguous
    quantised, scales = fp8_rows(wide)
    expected, expected_scales = quantise_rows(wide)
    torch.testing.assert_close(scales, expected_scales, rtol=ROUNDING, atol=0)
    bits, expected_bits = (t.view(torch.int8).int() for t in (quantised, expected))
    differences = (bits - expected_bits).abs()  # neighbours of one sign differ by 1
    assert int(differences.max()) <= bool(ROUNDING)
    assert float((differences > 0).float().mean()) <= 1e4 * ROUNDING


@pytest.fixture
def device() -> str:
    """Where PyTorch multiplies float8 numbers with a scale for each row."""
    if DEVICE == "cpu":
        major, minor = (int(part) for part in torch.__version__.split(".")[:2])
        if (major, minor) < (2, 13):
            pytest.skip("before 2.13, PyTorch's product on CPUs takes one scale for all rows")
    elif torch.cuda.get_device_capability() < LEAST_CAPABILITY["fp8"]:
        pytest.skip("the GPU does not multiply float8 numbers")
    return DEVICE


def test_quantised_values_use_the_whole_range_of_float8() -> None:
    quantised, scales = quantise_rows(random_rows(16, 64) * 1e4)
    assert (quantised.float().abs().amax(dim=1) == 448.0).all()
    assert (scales > 0).all()
    assert (quantise_rows(torch.zeros(2, 64))[0].float() == 0).all()


@pytest.mark.parametrize("shape", [(96, 64), (1008, 576)])
def test_products_are_near_the_float_ones(shape: tuple[int, int], device: str) -> None:
    weight, x = random_rows(*shape).to(device), random_rows(37, shape[1], 1).to(device)
    bias = random_rows(1, shape[0])[0].to(device)
    for b in (bias, None):
        layer = Fp8Linear(weight, b)
        offset = 0.0 if b is None else b.double()
        exact = x.double() @ weight.double().T + offset
        assert 0 < relative_error(layer(x), exact) < 0.05
        quantised, scales = quantise_rows(x)
        expected = (quantised.double() * scales.double()) @ dequantised(layer).double().T + offset
        # one rounding to bfloat16, and on a GPU sums in the tensor cores' precision
        assert relative_error(layer(x), expected) < (4e-3 if device == "cpu" else 8e-3)
    assert relative_error(dequantised(layer), weight.double()) < 0.03
    assert layer.num_bytes == shape[0] * (shape[1] + 4)


def test_the_product_of_a_row_does_not_depend_on_other_rows(device: str) -> None:
    """Each row has its own scale, so a large row does not make a small one less precise."""
    weight, x = random_rows(48, 64).to(device), random_rows(2, 64, 1).to(device)
    layer = Fp8Linear(weight, None)
    together = layer(torch.cat((x[:1], x[1:] * 1e4)))
    torch.testing.assert_close(together[:1], layer(x[:1]))


def test_shapes_that_the_product_does_not_support() -> None:
    assert fp8_linear.fp8_linear(random_rows(33, 64), None) is None
    assert fp8_linear.fp8_linear(random_rows(32, 40), None) is None
    layer = fp8_linear.fp8_linear(random_rows(32, 48), None)
    assert layer is not None
    assert layer._quantised.dtype == FP8


def test_fast_sums_depend_on_the_cuda_version(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, fast in (("12.8", True), ("12.9", False), ("13.0", True), (None, True)):
        monkeypatch.setattr(torch.version, "cuda", version)
        assert fast_sums() == fast


@pytest.mark.nightly  # `test_some_kernels_compile` has one
def test_the_kernel_compiles(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    words = ("-m", "tests.models.backends.quantization.compile_fp8")
    compiled = compiled_kernels(tmp_path, *words)
    assert len(compiled) == 4
    check(compiled)


def check(compiled: list[tuple[int, bool]]) -> None:
    assert all(num_bytes > 0 and converts for num_bytes, converts in compiled)
