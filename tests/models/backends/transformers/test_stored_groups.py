"""Packed integers that stay as stored give the logits of the floats that they stand for."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.quantization.coded_linear import CodedLinear
from stonechat_models.backends.quantization.group_codes import (
    Groups,
    bits_of,
    columns_in_groups,
    group_codes,
    with_one_offset,
)
from stonechat_models.backends.transformers import quantize, stored_groups
from stonechat_models.backends.transformers.code_choice import can_keep_codes
from stonechat_models.backends.transformers.load import load_module
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from tests.models.packed_writers import CASES, save_packed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IDS = torch.arange(40)[None].to(DEVICE)
NUM_LINEARS = 14
KEPT = {
    "gptq": 4,
    "gptq-asym": 4,
    "gptq-v2": 4,
    "gptq-order": 4,
    "gptq-channel": 4,
    "gptq-2": 4,
    "gptq-8": 8,
    "gptq-16": 4,
    "auto-round": 4,
    "awq": 4,
    "w4a16": 4,
    "w4a16-asym": 4,
    "w4a16-order": 4,
    "w8a16": 8,
    "w8a8": 8,
    "w8a8-asym": 8,
    "bnb-8": 8,
}
"""Bits of the codes."""


def load(folder: Path, *, keeps_codes: bool, lines: list[str]) -> torch.nn.Module:
    config = EngineConfig(model=str(folder), dtype="float32")
    files = resolve_model(config, lines.append)
    return load_module(
        files, config, DEVICE, torch.float32, keeps_codes=keeps_codes, progress=lines.append
    )


def coded(module: torch.nn.Module) -> list[CodedLinear]:
    return [part for part in module.modules() if isinstance(part, CodedLinear)]


@pytest.mark.parametrize("name", KEPT)
@torch.inference_mode()
def test_formats(name, tmp_path):
    writer, quantization, _ = CASES[name]
    floats = save_packed(tmp_path, "llama", writer, quantization)
    module = load(tmp_path, keeps_codes=True, lines=[])
    layers = coded(module)
    assert len(layers) == NUM_LINEARS
    assert quantize.stored_label(module) == f"as stored (INT{KEPT[name]})"
    for key, part in module.named_modules():
        if isinstance(part, CodedLinear):
            expected = floats[f"{key}.weight"].to(DEVICE)
            torch.testing.assert_close(part.dequantised(), expected, rtol=1e-5, atol=1e-6)
    config = EngineConfig(model=str(tmp_path))
    files = resolve_model(config, lambda line: None)
    assert can_keep_codes(files, config, torch.device("cuda"))


@pytest.mark.parametrize("name", ["awq", "gptq-order"])
@torch.inference_mode()
def test_logits(name, tmp_path):
    writer, quantization, _ = CASES[name]
    save_packed(tmp_path, "llama", writer, quantization)
    plain = load(tmp_path, keeps_codes=False, lines=[])(IDS, use_cache=False).logits
    module = load(tmp_path, keeps_codes=True, lines=[])
    actual = module(IDS, use_cache=False).logits
    assert float((actual - plain).abs().max() / plain.std()) < 1e-3


def test_a_wrong_product_makes_floats_of_all_weights(tmp_path, monkeypatch):
    def off(groups, order, bits):
        codes = original(groups, order, bits)
        codes.low[::2] ^= 0x11111111
        return codes

    original = stored_groups.group_codes
    monkeypatch.setattr(stored_groups, "group_codes", off)
    writer, quantization, _ = CASES["gptq"]
    save_packed(tmp_path, "llama", writer, quantization)
    lines: list[str] = []
    module = load(tmp_path, keeps_codes=True, lines=lines)
    assert not coded(module)
    assert any("weights are dequantised: the product of" in line for line in lines)


def groups(values: torch.Tensor, num_groups: int, zeros: float = 8.0) -> Groups:
    n, k = values.shape
    scales = (torch.rand(n, num_groups) + 1.0).half().float()
    group_of = torch.arange(k) // (k // num_groups)
    return Groups(values, scales, torch.full_like(scales, zeros), group_of)


def test_bits():
    def bits(low: int, high: int, zeros: float = 8.0) -> int | None:
        values = torch.tensor([[low, high]])
        return bits_of(groups(values, 1, zeros))

    assert bits(0, 15) == 4
    assert bits(0, 16) == 5
    assert bits(0, 63) == 6
    assert bits(0, 64) == bits(0, 255) == bits(-128, 127, 0.0) == 8
    assert bits(0, 15, 0.5) is bits(-1, 128) is bits(0, 15, -1.0) is bits(0, 15, 256.0) is None


def test_columns_in_groups():
    mixed = torch.tensor([0, 1] * 32)
    order = columns_in_groups(mixed, 2)
    assert order is not None
    assert torch.equal(mixed[order], torch.arange(64) // 32)
    assert columns_in_groups(torch.arange(48) // 24, 2) is None  # a unit in two groups
    assert columns_in_groups(torch.tensor([0] * 40 + [1] * 24), 2) is None
    assert columns_in_groups(torch.arange(80) // 40, 2) is None


def test_scales_keep_their_numbers():
    values = torch.randint(0, 16, (4, 64), dtype=torch.uint8)
    order = torch.arange(64)
    half = groups(values, 2)
    wide = Groups(half.values, half.scales * (1 + 1e-6), half.zeros, half.group_of)
    short = Groups(
        half.values, half.scales.bfloat16().float() * 2.0**-100, half.zeros, half.group_of
    )
    for part, dtype in ((half, torch.float16), (wide, torch.float32), (short, torch.bfloat16)):
        codes = group_codes(part, order, 4)
        assert codes.scales.dtype is dtype
        assert torch.equal(codes.scales.float(), part.scales)
    assert with_one_offset(group_codes(half, order, 4)).extra is None
    half.zeros[1, 1] = 7.0
    assert with_one_offset(group_codes(half, order, 4)).extra is not None
