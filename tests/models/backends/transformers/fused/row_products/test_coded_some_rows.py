"""The product for some rows with codes, against float64, and its choice at load."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.quantization.codes.coded_linear import CodedLinear
from stonechat_models.backends.quantization.codes.float_codes import float4_codes, float8_codes
from stonechat_models.backends.quantization.codes.gguf_codes import GGUF_TYPES, gguf_codes
from stonechat_models.backends.quantization.codes.group_codes import (
    Groups,
    affine_codes,
    exact_dtype,
    group_codes,
    with_one_offset,
)
from stonechat_models.backends.quantization.scratch import Scratch
from stonechat_models.backends.transformers.fused import coded_choice
from stonechat_models.backends.transformers.fused.coded_choice import (
    choose_coded_products,
    choose_faster_codes,
    coded_groups,
)
from stonechat_models.backends.transformers.fused.row_products import some_rows
from stonechat_models.backends.transformers.fused.row_products.coded_some_rows import (
    CodedRows,
    can_multiply,
    with_wide_scales,
)
from stonechat_models.backends.transformers.fused.row_products.some_rows import (
    SomeRows,
    SomeRowsTile,
)
from tests.models.backends.quantization.codes.test_codes import (
    blocks_and_weight,
    error,
    random_rows,
)
from tests.models.dequantised import dequantised
from tests.models.random_codes import random_codes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float16: 1.5e-3, torch.bfloat16: 8e-3}
"""The interpreter cuts bfloat16 off instead of rounding."""
SMALL = SomeRowsTile(32, 128, num_warps=4, num_stages=2)


@pytest.fixture(autouse=True)
def short_splits(monkeypatch):
    monkeypatch.setattr(some_rows, "LEAST_STEPS", 1)


def way(tile=SMALL, num_multiprocessors=1):
    counters = torch.zeros(64, dtype=torch.int32, device=DEVICE)
    return CodedRows(SomeRows(tile, num_multiprocessors, counters))


def product(codes, how, x, bias=None):
    output = torch.full((len(x), codes.shape[0]), torch.nan, dtype=x.dtype, device=DEVICE)
    how(output, x, with_wide_scales(codes), bias)
    return output


def check(codes, weight, how, num_rows, dtype=torch.bfloat16, bias=None):
    """Compare with float64. `weight`: what the codes stand for, without our kernels."""
    assert can_multiply(codes)
    x = random_rows(num_rows, codes.shape[1], dtype)
    expected = x.double() @ weight.double().T
    if bias is not None:
        expected = expected + bias.double().cpu()
    x = x.to(DEVICE)
    actual = product(codes, how, x, bias)
    assert error(actual, expected) < TOLERANCE[dtype]
    assert int(how.how.counters.abs().max()) == 0
    return x, actual


@pytest.mark.parametrize("type_name", sorted(GGUF_TYPES))
def test_types_of_files(type_name):
    blocks, weight = blocks_and_weight(type_name, n=20, k=512)
    check(gguf_codes(type_name, blocks), weight, way(num_multiprocessors=2), 9)


@pytest.mark.parametrize("num_multiprocessors", [1, 4, 16], ids=["whole", "halves", "quarters"])
def test_several_parts(num_multiprocessors):
    """The sums have one order, and the counters are zeros again."""
    blocks, weight = blocks_and_weight("Q4_K", n=37, k=512)
    codes, how = gguf_codes("Q4_K", blocks), way(num_multiprocessors=num_multiprocessors)
    bias = random_rows(1, 37, torch.bfloat16)[0].to(DEVICE)
    x, actual = check(codes, weight, how, 9, bias=bias)
    assert torch.equal(product(codes, how, x, bias), actual)


@pytest.mark.parametrize("num_rows", [5, 8, 16, 17, 33, 64])
def test_rows(num_rows):
    blocks, weight = blocks_and_weight("Q4_K", n=20, k=256)
    for dtype in TOLERANCE:
        check(gguf_codes("Q4_K", blocks), weight, way(), num_rows, dtype)


@pytest.mark.parametrize("k", [32, 160])
def test_inputs_that_tiles_do_not_divide(k):
    """The last tile of units is cut, with scales for half units too."""
    blocks, weight = blocks_and_weight("Q5_0", n=8, k=k)
    check(gguf_codes("Q5_0", blocks), weight, way(), 5)
    check(gguf_codes("Q5_0", blocks), weight, way(num_multiprocessors=16), 5)
    groups, weight = integer_groups(k, 16, 4)
    codes = group_codes(groups, torch.arange(k), 4, torch.float16)
    check(on_device(codes), weight, way(num_multiprocessors=16), 5)


def integer_groups(k, size, bits, n=24):
    values = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8)
    scales = (torch.rand(n, k // size) + 0.5).half().float() / k**0.5 / (1 << bits)
    zeros = torch.randint(0, 1 << bits, scales.shape).float()
    group_of = torch.arange(k) // size
    weight = (values - zeros[:, group_of]) * scales[:, group_of]
    return Groups(values, scales, zeros, group_of), weight


@pytest.mark.parametrize(("size", "bits"), [(16, 4), (32, 8), (64, 5), (128, 6), (256, 4)])
def test_groups_of_integers(size, bits):
    torch.manual_seed(size + bits)
    groups, weight = integer_groups(256, size, bits)
    codes = group_codes(groups, torch.arange(256), bits, exact_dtype([groups.scales]))
    check(on_device(codes), weight, way(), 7)


def test_groups_with_one_offset():
    torch.manual_seed(0)
    groups, _ = integer_groups(512, 128, 4)
    same = Groups(groups.values, groups.scales, torch.full_like(groups.zeros, 8), groups.group_of)
    codes = group_codes(same, torch.arange(512), 4, torch.float16)
    codes = with_one_offset(codes)
    assert codes.extra is None
    weight = (same.values - 8.0) * same.scales[:, same.group_of]
    check(on_device(codes), weight, way(num_multiprocessors=16), 16)


@pytest.mark.parametrize("size", [32, 64])
def test_groups_with_biases(size):
    """As MLX has them."""
    torch.manual_seed(size)
    values = torch.randint(0, 32, (24, 512), dtype=torch.uint8)
    scales = ((torch.rand(24, 512 // size) + 0.5) / 512**0.5 / 16).bfloat16()
    biases = -(scales.float() * 15).bfloat16()
    columns = torch.arange(512) // size
    weight = values * scales.float()[:, columns] + biases.float()[:, columns]
    check(on_device(affine_codes(values, scales, biases, 5)), weight, way(), 8)


@pytest.mark.parametrize(("size", "dtype"), [(128, torch.bfloat16), (512, torch.float32)])
def test_float8(size, dtype):
    """All numbers but NaN are among them, the smallest too."""
    torch.manual_seed(size)
    bits = torch.arange(8 * 512).view(8, 512) % 256
    bits = torch.where((bits & 127) == 127, 0, bits).to(torch.uint8)
    scales = ((torch.rand(8, 512 // size) + 0.5) / 4000).to(dtype)
    codes = float8_codes(bits, scales, size)
    weight = bits.view(torch.float8_e4m3fn).float() * scales.float()[:, torch.arange(512) // size]
    check(on_device(codes), weight, way(), 5)


def test_float8_with_scales_that_are_too_large():
    bits = torch.ones(8, 128, dtype=torch.uint8)
    assert can_multiply(float8_codes(bits, torch.full((8, 1), 127.0), 128))
    assert not can_multiply(float8_codes(bits, torch.full((8, 1), 128.0), 128))


@pytest.mark.parametrize("size", [16, 32, 64])
def test_float4(size):
    """NVFP4, and with groups of 32 MXFP4 too."""
    torch.manual_seed(size)
    numbers = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    numbers = torch.cat([numbers, -numbers])
    codes = torch.randint(0, 16, (8, 256))
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    columns = torch.arange(256) // size
    bits = torch.randint(8, 120, (8, 256 // size), dtype=torch.uint8)
    weight = numbers[codes] * bits.view(torch.float8_e4m3fn).float()[:, columns] * 0.003
    check(on_device(float4_codes(packed, bits, 0.003)), weight, way(), 5)
    if size == 32:
        exponents = torch.randint(110, 125, (8, 256 // size), dtype=torch.uint8)
        scales = torch.from_numpy(np.ldexp(1.0, exponents.numpy().astype(int) - 127))
        weight = numbers[codes].double() * scales[:, columns]
        check(on_device(float4_codes(packed, exponents, None)), weight, way(), 5)


def on_device(codes):
    names = ("low", "high", "scales", "extra", "table")
    planes = {name: getattr(codes, name) for name in names}
    moved = {name: None if plane is None else plane.to(DEVICE) for name, plane in planes.items()}
    return type(codes)(codes.format, group=codes.group, **moved)


@pytest.mark.parametrize("name", [*sorted(GGUF_TYPES), "FP8"])
def test_wider_scales_change_no_weight(name):
    codes = random_codes(name, 8, 512, DEVICE)
    wide = with_wide_scales(codes)
    assert wide.low is codes.low
    assert torch.equal(dequantised(wide), dequantised(codes))


def two_layers(dtype=torch.bfloat16):
    scratch = Scratch(DEVICE, dtype)
    names = (("Q4_K", "Q6_K"), ("Q8_0",))
    return torch.nn.ModuleList(
        CodedLinear(
            [random_codes(n, 32, 256, DEVICE, size=1 / 16) for n in part], None, scratch, dtype
        )
        for part in names
    )


@torch.inference_mode()
def test_the_faster_way_is_chosen_for_each_number_of_rows():
    """A timer finds the tile slower for 16 rows and faster for 64."""
    layers, how = two_layers(), way()
    groups = coded_groups(layers)
    assert [group.kind for group in groups] == ["Q4_K and Q6_K codes", "Q8_0 codes"]
    times = iter([1.0, 2.0, 2.0, 1.0] * 2)
    ways = {16: [how], 64: [how]}
    timings = choose_faster_codes(groups, lambda run: next(times), ways)
    assert [(t.num_rows, t.torch, t.own) for t in timings[:2]] == [(16, 1, 2), (64, 2, 1)]
    for layer in layers:
        assert [n for n in range(1, 70) if layer._ways.get(n)] == list(range(17, 65))
        weight = dequantised(layer).cpu()
        for num_rows in (3, 16, 40):
            x = random_rows(num_rows, 256, torch.bfloat16)
            assert error(layer(x.to(DEVICE)), x.double() @ weight.double().T) < 1e-2


@torch.inference_mode()
def test_a_way_that_is_wrong_is_not_chosen(monkeypatch):
    layers, how = two_layers(), way()

    def off_by_one(self, output, *_, **__):
        output.fill_(1.0)

    monkeypatch.setattr(CodedRows, "__call__", off_by_one)
    timings = choose_faster_codes(coded_groups(layers), lambda run: 1.0, {16: [how]})
    assert all(timing.tile is None for timing in timings)
    assert not layers[0]._ways


def test_only_layers_in_half_precision_have_a_choice():
    assert coded_groups(two_layers(torch.float32)) == []
    lines = []
    assert choose_coded_products(torch.nn.Linear(2, 2), lines.append) == []
    assert not lines


@pytest.mark.parametrize("absent", ["with_wide_scales", "compile_ahead"])
@torch.inference_mode()
def test_layers_stay_as_they_are_after_an_error(absent, monkeypatch):
    """The first one may find no memory for wider scales."""
    layers, lines = two_layers(), []
    monkeypatch.setattr(coded_choice.GraphTimer, "works_on", lambda _: True)
    monkeypatch.setattr(coded_choice, absent, None)
    assert choose_coded_products(layers, lines.append) == []
    assert "dequantised" in lines[0]
    assert not layers[0]._ways
