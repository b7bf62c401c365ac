"""Packed weights that stay as stored give the logits of the floats that they stand for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

pytest.importorskip("triton")

from stonechat_models.backends.quantization.codes import code_products
from stonechat_models.backends.quantization.codes.coded_linear import CodedEmbedding, CodedLinear
from stonechat_models.backends.quantization.codes.group_codes import (
    Groups,
    bits_of,
    columns_in_groups,
    exact_dtype,
    group_codes,
    with_one_offset,
)
from stonechat_models.backends.transformers.fused.moe.coded_experts import CodedExpertLinear
from stonechat_models.backends.transformers.fused.moe.recognise_experts import is_experts
from stonechat_models.backends.transformers.kinds import auto_class, empty_module
from stonechat_models.backends.transformers.loading import quantize
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.backends.transformers.stored import experts as stored_experts
from stonechat_models.backends.transformers.stored import packed_codes
from stonechat_models.backends.transformers.stored.choice import can_keep_codes
from stonechat_models.backends.transformers.stored.groups import names_in_groups
from stonechat_models.checkpoint.packed import layouts
from stonechat_models.checkpoint.packed.folder import read_packing
from stonechat_models.checkpoint.packed.layouts import IntegerLayout
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from tests.models.dequantised import dequantised
from tests.models.packed_writers import (
    CASES,
    FP8,
    compressed,
    fp8,
    is_linear_or_expert,
    pack_quantized,
    save_packed,
    stack_experts,
)
from tests.nightly import nightly

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IDS = torch.arange(40)[None].to(DEVICE)
NUM_LINEARS = 7
ONE_LAYER = {"num_hidden_layers": 1}
KEPT = {
    "gptq": "INT4",
    "gptq-asym": "INT4",
    "gptq-v2": "INT4",
    "gptq-order": "INT4",
    "gptq-channel": "INT4",
    "gptq-2": "INT4",
    "gptq-8": "INT8",
    "gptq-16": "INT4",
    "auto-round": "INT4",
    "awq": "INT4",
    "w4a16": "INT4",
    "w4a16-asym": "INT4",
    "w4a16-order": "INT4",
    "w8a16": "INT8",
    "w8a8": "INT8",
    "w8a8-asym": "INT8",
    "bnb-8": "INT8",
    **dict.fromkeys(("fp8-block", "fp8-tensor", "fp8-channel", "fp8-modelopt", "mxfp8"), "FP8"),
    **dict.fromkeys(("nvfp4", "nvfp4-modelopt"), "NVFP4"),
    "mxfp4": "MXFP4",
    **dict.fromkeys(("mlx-2", "mlx-3", "mlx-4"), "AFFINE4"),
    **{f"mlx-{bits}": f"AFFINE{bits}" for bits in (5, 6, 8)},
}
"""The name of the codes."""
DAILY = ("gptq-order", "w8a8-asym", "fp8-block", "nvfp4", "mlx-5")


@pytest.fixture(autouse=True)
def _few_checked_rows(monkeypatch):
    """Check each product with two numbers of rows at load. `test_stored_codes` has the others."""
    rows = code_products.KERNEL_ROWS
    monkeypatch.setattr(code_products, "KERNEL_ROWS", (rows[0], rows[-1]))


def load(
    folder: Path, *, keeps_codes: bool, lines: list[str], dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    config = EngineConfig(model=str(folder))
    files = resolve_model(config, lines.append)
    return load_module(files, config, DEVICE, dtype, keeps_codes=keeps_codes, progress=lines.append)


def coded(module: torch.nn.Module) -> list[CodedLinear]:
    return [part for part in module.modules() if isinstance(part, CodedLinear)]


@pytest.mark.parametrize("name", [*DAILY, *nightly(*(name for name in KEPT if name not in DAILY))])
@torch.inference_mode()
def test_formats(name, tmp_path, monkeypatch):
    writer, quantization, _ = CASES[name]
    floats = save_packed(tmp_path, "llama", writer, quantization, **ONE_LAYER)
    module = load(tmp_path, keeps_codes=True, lines=[])
    layers = coded(module)
    assert len(layers) == NUM_LINEARS
    assert quantize.stored_label(module) == f"as stored ({KEPT[name]})"
    for key, part in module.named_modules():
        if isinstance(part, CodedLinear):
            expected = floats[f"{key}.weight"].to(DEVICE)
            torch.testing.assert_close(dequantised(part), expected, rtol=1e-5, atol=1e-6)
    config = EngineConfig(model=str(tmp_path))
    files = resolve_model(config, lambda line: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    assert can_keep_codes(files, config, torch.device("cuda"))


@torch.inference_mode()
def test_biases_have_the_dtype_of_the_model(tmp_path):
    """More rows than the kernel takes are multiplied by PyTorch, in one dtype."""
    writer, quantization, _ = CASES["awq"]
    save_packed(tmp_path, "llama", writer, quantization, **ONE_LAYER)
    module = load(tmp_path, keeps_codes=True, lines=[], dtype=torch.bfloat16)
    assert any(part.bias is not None for part in coded(module))
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module(IDS, use_cache=False).logits.isfinite().all()


@pytest.mark.parametrize("name", ["fp8-block", *nightly("nvfp4", "gptq-asym")])
@torch.inference_mode()
def test_experts(name, tmp_path):
    writer, quantization, _ = CASES[name]
    save_packed(tmp_path, "qwen3_moe", writer, quantization, is_linear_or_expert, **ONE_LAYER)
    plain = load(tmp_path, keeps_codes=False, lines=[])
    module = load(tmp_path, keeps_codes=True, lines=[])
    experts = [part for part in module.modules() if isinstance(part, CodedExpertLinear)]
    assert len(experts) == 2 * sum(map(is_experts, plain.modules())) > 0
    assert quantize.num_weights(module) == quantize.num_weights(plain)
    actual, expected = (m(IDS, use_cache=False).logits for m in (module, plain))
    assert float((actual - expected).abs().max() / expected.std()) < 1e-3


@pytest.mark.parametrize("width", [32, 48])
def test_the_headers_tell_what_is_kept(width, tmp_path):
    writer, quantization, _ = CASES["fp8-tensor"]
    save_packed(
        tmp_path,
        "qwen3_moe",
        writer,
        quantization,
        lambda name: is_linear_or_expert(name) or "embed_tokens" in name,
        moe_intermediate_size=width,
        **ONE_LAYER,
    )
    files = resolve_model(EngineConfig(model=str(tmp_path)), lambda line: None)
    empty = empty_module(files.config, auto_class(files.config))
    names = names_in_groups(read_packing(files), empty)
    module = load(tmp_path, keeps_codes=True, lines=[])
    experts = {n for n in names if ".experts." in n}
    kept = {
        f"{n}.weight"
        for n, part in module.named_modules()
        if isinstance(part, (CodedLinear, CodedEmbedding))
    }
    assert names - experts == kept
    has_experts = any(isinstance(part, CodedExpertLinear) for part in module.modules())
    assert bool(experts) == has_experts == (width == 32)


@pytest.mark.parametrize("family", ["llama-tied", "qwen3_moe"])
@torch.inference_mode()
def test_folders_of_mlx(family, tmp_path):
    """Embeddings are packed too, and all experts of a layer lie in one tensor."""
    writer, quantization, _ = CASES["mlx-4"]
    save_packed(
        tmp_path,
        family,
        writer,
        quantization,
        lambda name: is_linear_or_expert(name) or "embed_tokens" in name,
        **ONE_LAYER,
    )
    stack_experts(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "float", dtype=torch.float32)
    module = load(tmp_path, keeps_codes=True, lines=[])
    kinds = [type(part) for part in module.modules()]
    assert CodedEmbedding in kinds
    assert nn.Embedding not in kinds
    assert (CodedExpertLinear in kinds) is (family == "qwen3_moe")
    assert (type(module.lm_head) is CodedLinear) is (family == "llama-tied")
    actual, expected = (m(IDS, use_cache=False).logits for m in (module, reference.to(DEVICE)))
    assert float((actual - expected).abs().max() / expected.std()) < 1e-3


@pytest.mark.parametrize(
    ("writer", "quantization"),
    [
        (fp8((64, 48)), {**FP8, "weight_block_size": [64, 48]}),
        (pack_quantized(4, 24), compressed("pack-quantized", num_bits=4, group_size=24)),
    ],
    ids=["fp8", "w4a16"],
)
def test_groups_of_parts_of_units_become_floats(writer, quantization, tmp_path):
    """A plan says so too."""
    save_packed(
        tmp_path,
        "llama",
        writer,
        quantization,
        lambda name: "down_proj.weight" in name,
        intermediate_size=96,
    )
    files = resolve_model(EngineConfig(model=str(tmp_path)), lambda line: None)
    packing = read_packing(files)
    assert len(packing.tensors) == 2
    assert not names_in_groups(packing, empty_module(files.config, auto_class(files.config)))
    assert not coded(load(tmp_path, keeps_codes=True, lines=[]))


def test_experts_whose_codes_differ_become_floats(tmp_path, monkeypatch):
    def other(tensor, *args):
        codes, order = original(tensor, *args)
        if tensor.name.endswith("1.up_proj.weight"):
            codes = replace(codes, group=32)
        return codes, order

    original = stored_experts.codes_of
    monkeypatch.setattr(stored_experts, "codes_of", other)
    writer, quantization, _ = CASES["fp8-block"]
    save_packed(tmp_path, "qwen3_moe", writer, quantization, is_linear_or_expert, **ONE_LAYER)
    module = load(tmp_path, keeps_codes=True, lines=[])
    assert not any(isinstance(part, CodedExpertLinear) for part in module.modules())
    assert coded(module)


def test_a_wrong_product_makes_floats_of_all_weights(tmp_path, monkeypatch):
    def off(*args):
        codes = original(*args)
        codes.low[::2] ^= 0x11111111
        return codes

    original = packed_codes.group_codes
    monkeypatch.setattr(packed_codes, "group_codes", off)
    writer, quantization, _ = CASES["gptq"]
    save_packed(tmp_path, "llama", writer, quantization, **ONE_LAYER)
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
    def bits(
        low: int, high: int, zeros: float = 8.0, dtype: torch.dtype = torch.uint8
    ) -> int | None:
        values = torch.tensor([[low, high]], dtype=dtype)
        return bits_of(groups(values, 1, zeros))

    assert bits(0, 15) == 4
    assert bits(0, 16) == 5
    assert bits(0, 63) == 6
    assert bits(0, 64) == bits(0, 255) == bits(-128, 127, 0.0, torch.int8) == 8
    assert bits(0, 15, 0.5) is bits(0, 15, -1.0) is bits(0, 15, 256.0) is None
    assert bits(-1, 5, 0.0, torch.int32) is bits(0, 256, 0.0, torch.int32) is None


@pytest.mark.parametrize("low", [-5, 0, 3])
def test_signed_numbers_keep_their_values(low):
    """Those of a layer, or of some of its rows, may all be positive."""
    values = torch.randint(low, 12, (4, 64), dtype=torch.int8)
    part = groups(values, 2, 0.0)
    bits = bits_of(part)
    assert bits == 8
    on_device = (t.to(DEVICE) for t in (values, part.scales, part.zeros, part.group_of))
    codes = group_codes(Groups(*on_device), torch.arange(64).to(DEVICE), bits, torch.float16)
    expected = values * part.scales[:, part.group_of]
    torch.testing.assert_close(dequantised(codes).cpu(), expected)


def test_one_dtype_for_the_scales_of_all_rows():
    """The small scale is a number of bfloat16, and of none of the others' dtypes."""

    class Layout(IntegerLayout):
        def codes(self, parts, rows):
            values, scales = parts["values"][rows], parts["scales"][rows]
            return layouts.Codes(values, scales, torch.full_like(scales, 8), group_of)

    n, group_of = packed_codes.CHUNK_ROWS + 16, torch.arange(64) // 32
    scales = (torch.rand(n, 2) * 0.01 + 0.001).bfloat16().float()
    scales[-1, 1] = torch.tensor(1.1e-7).bfloat16().float()
    values = torch.randint(0, 16, (n, 64), dtype=torch.uint8)
    codes, _ = packed_codes._integer_codes(Layout(), {"values": values, "scales": scales}, n)
    assert codes is not None
    assert codes.scales.dtype is torch.bfloat16
    assert torch.equal(codes.scales.float(), scales)


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
        codes = group_codes(part, order, 4, exact_dtype([part.scales]))
        assert codes.scales.dtype is dtype
        assert torch.equal(codes.scales.float(), part.scales)
    assert with_one_offset(group_codes(half, order, 4, torch.float16)).extra is None
    half.zeros[1, 1] = 7.0
    assert with_one_offset(group_codes(half, order, 4, torch.float16)).extra is not None
