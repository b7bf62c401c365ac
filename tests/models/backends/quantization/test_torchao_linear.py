"""Tests on a CPU of the layers that a model gets on CUDA: torchao's layers, and those in fp8.

int8 and fp8 products run on a CPU as they are. The int4 kernels run only on CUDA. The tests replace
them by a packing that keeps the quantised values, and by a product that follows their definition.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchao")

from stonechat_models.backends.quantization import choose
from stonechat_models.backends.quantization.choose import cuda_linear
from stonechat_models.backends.quantization.cpu_linear import TorchLinear, WeightOnlyLinear
from stonechat_models.backends.quantization.linear import QuantizedLinear
from stonechat_models.backends.quantization.torchao_linear import TorchaoLinear
from stonechat_models.backends.transformers.loading import quantize
from stonechat_models.backends.transformers.packing_check import check_packing
from stonechat_models.config import EngineConfig, Precision
from stonechat_models.diagnostics import memory_plan, serving_forms
from stonechat_models.diagnostics.memory_plan import survey_model
from stonechat_models.diagnostics.survey import ServingForm
from tests.models.engines import CPU, generate_all, greedy, make_engine, reference_greedy
from tests.models.tiny_models import VOCAB_SIZE, tiny_model
from tests.nightly import nightly

PRECISIONS: list[Precision] = ["int8", "int4", "fp8"]
RELATIVE_ERROR = {"int8": 0.015, "int4": 0.13, "fp8": 0.05}
"""Bounds for a product of normally distributed numbers, in the Euclidean norm."""


def unpacked(packed: torch.Tensor) -> torch.Tensor:
    """Unpack uint8[n, k / 2] to int64[n, k]. The high bits of a byte hold the first value."""
    return torch.stack((packed >> 4, packed & 15), dim=-1).flatten(1).long()


def int4_product(
    x: torch.Tensor, packed: torch.Tensor, group_size: int, scale_and_zero: torch.Tensor
) -> torch.Tensor:
    """The definition of `aten::_weight_int4pack_mm`: w = (quantised - 8) * scale + zero."""
    quantised = unpacked(packed.flatten(1)).float() - 8.0
    scale, zero = scale_and_zero.float().unbind(-1)  # [k / group, n]
    weight = quantised * scale.T.repeat_interleave(group_size, 1)
    weight += zero.T.repeat_interleave(group_size, 1)
    return (x.float() @ weight.T).to(x.dtype)


@pytest.fixture
def int4_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (9, 0))
    library = torch.library.Library("aten", "IMPL")
    library.impl(
        "_convert_weight_to_int4pack",
        lambda packed, inner_k_tiles: packed.view(packed.shape[0], -1, 32, inner_k_tiles // 2),
        "CPU",
    )
    library.impl("_weight_int4pack_mm", int4_product, "CPU")
    yield
    library._destroy()


def random_layer(
    n: int, k: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((n, k), (n,), (37, k))
    weight, bias, x = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    return weight, bias, x


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(96, 64), (1008, 576), (48, 1024)])
def test_products_are_near_the_float_ones(
    int4_kernels: None, precision: Precision, shape: tuple[int, int]
) -> None:
    weight, bias, x = random_layer(*shape)
    for b in (bias, None):
        layer = cuda_linear(weight, b, precision)
        assert layer is not None
        exact = x.double() @ weight.double().T + (0.0 if b is None else b.double())
        actual = layer(x.view(1, 37, -1))
        assert (actual.shape, actual.dtype) == ((1, 37, shape[0]), torch.bfloat16)
        assert 0 < relative_error(actual[0], exact) < RELATIVE_ERROR[precision]


def test_int4_is_no_worse_than_groups_of_32_should_be(int4_kernels: None) -> None:
    weight, _, x = random_layer(96, 64)
    layer, oracle = cuda_linear(weight, None, "int4"), TorchLinear(weight, None, "int4")
    assert layer is not None
    exact = x.double() @ weight.double().T
    assert relative_error(layer(x), exact) < 1.3 * relative_error(oracle(x), exact)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_zeros_give_zeros(int4_kernels: None, precision: Precision) -> None:
    weight, _, x = random_layer(48, 64)
    weight[3], x[5] = 0.0, 0.0
    layer = cuda_linear(weight, None, precision)
    assert layer is not None
    output = layer(x)
    assert torch.isfinite(output).all()
    assert (output[5] == 0).all()
    assert (output[:, 3] == 0).all()


def test_num_bytes_counts_quantised_values_scales_and_bias(int4_kernels: None) -> None:
    weight, bias, _ = random_layer(48, 64)
    layers = {p: cuda_linear(weight, bias, p) for p in PRECISIONS}
    sizes = {p: layer.num_bytes for p, layer in layers.items() if layer is not None}
    bias_bytes = 2 * 48
    assert sizes == {
        "int8": 48 * 64 + 48 * (4 + 1) + bias_bytes,  # a scale and a zero point per output
        "int4": 48 * 1024 // 2 + 48 * 1024 // 32 * 4 + bias_bytes,  # inputs are padded to 1024
        "fp8": 48 * 64 + 48 * 4 + bias_bytes,
    }


def test_shapes_that_the_kernels_support(int4_kernels: None) -> None:
    def supported(n: int, k: int) -> list[Precision]:
        weight = random_layer(n, k)[0]
        return [p for p in PRECISIONS if cuda_linear(weight, None, p) is not None]

    assert supported(48, 64) == PRECISIONS
    assert supported(48, 48) == ["int8", "fp8"]
    assert supported(33, 64) == ["int8", "int4"]
    assert supported(33, 7) == ["int8"]


def test_int8_in_half_precision_is_not_left_to_torchao() -> None:
    """torchao adds before it scales: the sum of 64 products of 127 and 10 exceeds 65504."""
    weight, x = torch.full((4, 64), 0.5, dtype=torch.half), torch.full((1, 64), 10.0).half()
    layer = cuda_linear(weight, None, "int8")
    assert layer is not None
    assert torch.isinf(layer(x)).all()
    torch.testing.assert_close(WeightOnlyLinear(weight, None)(x), torch.full((1, 4), 320.0).half())


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantised modules get the layers that they would get on CUDA."""

    def on_cuda(
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        precision: Precision,
        *_: object,
        **__: object,
    ) -> QuantizedLinear | None:
        return cuda_linear(weight, bias, precision)

    monkeypatch.setattr(quantize, "quantized_linear", on_cuda)
    monkeypatch.setattr(quantize, "is_on_cuda", lambda _: True)
    monkeypatch.setattr(quantize, "is_experts", lambda *_: False)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_quantised_engines_match_their_module(
    int4_kernels: None, as_on_cuda: None, precision: Precision, family: str
) -> None:
    plain = tiny_model(family)
    for parameter in plain.parameters():  # like trained weights; tiny_model's vary the output more
        parameter.data.mul_(0.5)
    module = copy.deepcopy(plain).to(torch.bfloat16)
    head = module.get_output_embeddings()
    name, probe = quantize.quantize_checked(module, precision, torch.bfloat16, None)
    assert module.get_output_embeddings() is head
    float_layers = [] if family == "gemma2" else ["lm_head"]  # a tied head is the embedding
    if precision == "int4":  # 48 inputs are not a multiple of the group
        float_layers.insert(0, "dense_4h_to_h" if family == "gpt_neox" else "down_proj")
    assert name == (f"{precision} (not: {', '.join(float_layers)})" if float_layers else precision)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (3, 17, 9)]
    engine = make_engine(module, probe=probe)
    errors, plain_errors = [], []
    for prompt, result in zip(prompts, generate_all(engine, prompts, greedy(1)), strict=True):
        entry = result.logprobs[0]
        for reference, differences in ((module, errors), (plain, plain_errors)):
            logprobs = reference_greedy(reference, prompt, 1)[1][0]
            differences += [
                abs(a - float(logprobs[i]))
                for i, a in zip(entry.top_ids, entry.top_logprobs, strict=True)
            ]
    assert max(errors) < 0.1  # the rounding of bfloat16 in another batch
    assert max(plain_errors) < {"int8": 0.15, "int4": 1.0, "fp8": 0.4}[precision]


@pytest.mark.parametrize("family", ["qwen3", *nightly("llama")])
@pytest.mark.parametrize("precision", ["int8", *nightly("fp8")])
def test_fused_modules_are_quantised_as_one(
    as_on_cuda: None, precision: Precision, family: str
) -> None:
    pytest.importorskip("triton")
    from stonechat_models.backends.transformers.attention.triton_backend import TritonBackend
    from stonechat_models.backends.transformers.fused.replace import fuse_modules

    module = tiny_model(family)
    for parameter in module.parameters():  # like trained weights; tiny_model's vary the output more
        parameter.data.mul_(0.5)
    module = module.to(torch.bfloat16)
    original = copy.deepcopy(module)
    probe = check_packing(module, CPU, VOCAB_SIZE)
    fuse_modules(module)
    name, _ = quantize.quantize_checked(module, precision, torch.bfloat16, None, probe=probe)
    assert name == f"{precision} (not: lm_head)"
    quantised = [n for n, m in module.named_modules() if isinstance(m, QuantizedLinear)]
    ends = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert [n.rpartition(".")[2] for n in quantised] == [*ends, *ends]
    prompt = [5, 9, 11, 30, 7, 8, 100]
    result = generate_all(make_engine(module, TritonBackend(16), probe=probe), [prompt], greedy(2))
    entry, expected = result[0].logprobs[0], reference_greedy(original, prompt, 1)[1][0]
    errors = [abs(a - float(expected[i])) for i, a in zip(entry.top_ids, entry.top_logprobs)]
    assert max(errors) < {"int8": 0.1, "fp8": 0.3}[precision]


def test_layers_that_stay_float_are_named(int4_kernels: None, as_on_cuda: None) -> None:
    module = tiny_model("qwen3_moe").to(torch.bfloat16)
    before = quantize.weight_bytes(module)
    name, _ = quantize.quantize_checked(module, "int8", torch.bfloat16, None)
    assert name == "int8 (not: down_proj, gate_up_proj, lm_head)"
    layers = [m for m in module.modules() if isinstance(m, TorchaoLinear)]
    assert len(layers) == 2 * 4
    saved = sum(m.in_features * m.out_features * 2 - m.num_bytes for m in layers)
    assert quantize.weight_bytes(module) == before - saved


@pytest.mark.parametrize("family", ["qwen3_moe", *nightly("gemma2", "gpt_neox")])
def test_the_survey_knows_the_sizes(
    int4_kernels: None,
    as_on_cuda: None,
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(memory_plan, "choose_device", lambda _: cuda)
    monkeypatch.setattr(memory_plan, "total_memory", lambda _: 1 << 34)
    monkeypatch.setattr(serving_forms, "free_memory", lambda _: 1 << 33)
    sizes = {"hidden_size": 96, "intermediate_size": 200, "vocab_size": 512}
    module = tiny_model(family, **sizes).to(torch.bfloat16)
    module.save_pretrained(tmp_path)

    def forms(**changes: object) -> dict[str, ServingForm]:
        config = EngineConfig(model=str(tmp_path), **changes)  # type: ignore[arg-type]
        return {form.name: form for form in survey_model(config, lambda line: None).forms}

    all_forms = forms()
    for precision in PRECISIONS:
        duplicate = copy.deepcopy(module)
        quantize.quantize_module(duplicate, precision, None)
        assert all_forms[precision].weight_bytes == quantize.weight_bytes(duplicate)
        assert [n for n, f in forms(quantize=precision).items() if f.is_default] == [precision]
    assert (
        all_forms["fp8"].kv_bytes_per_token
        == 2 * forms(kv_cache_dtype="fp8")["fp8"].kv_bytes_per_token
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (8, 0))
    assert not {"fp8"} & set(forms())
    config = EngineConfig(model=str(tmp_path), quantize="fp8")
    assert "has 8.0" in str(survey_model(config, lambda line: None).refusal)


def test_weights_on_cuda_get_the_layers_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        """The attributes of a weight that `quantized_linear` reads."""

        device = torch.device("cuda", 0)
        shape = torch.Size((4, 4))

        def __init__(self, dtype: torch.dtype) -> None:
            self.dtype = dtype

    monkeypatch.setattr(choose, "cuda_linear", lambda *arguments: ("for CUDA", *arguments))
    monkeypatch.setattr(choose, "WeightOnlyLinear", lambda *arguments: ("weight only", *arguments))
    bfloat16, half = OnCuda(torch.bfloat16), OnCuda(torch.half)
    for precision in PRECISIONS:
        layer = choose.quantized_linear(bfloat16, None, precision, None)  # type: ignore[arg-type]
        assert layer == ("for CUDA", bfloat16, None, precision)
    layer = choose.quantized_linear(half, None, "int8", None)  # type: ignore[arg-type]
    assert layer == ("weight only", half, None)
