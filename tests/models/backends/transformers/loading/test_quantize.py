"""Quantised layers against their oracle, and quantised models against their float originals."""

import copy
from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

from stonechat_models.backends.native.bindings import load_library
from stonechat_models.backends.quantization.choose import quantized_linear
from stonechat_models.backends.quantization.cpu_linear import (
    LinearTeam,
    NativeLinear,
    TorchLinear,
    WeightOnlyLinear,
)
from stonechat_models.backends.quantization.experts import QuantizedExperts
from stonechat_models.backends.quantization.groupwise import quantise
from stonechat_models.backends.quantization.linear import QuantizedLinear
from stonechat_models.backends.transformers.attention.row import RowBackend
from stonechat_models.backends.transformers.loading import quantize
from stonechat_models.backends.transformers.loading.deterministic import ROWS, make_deterministic
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.runtime.build import build_engine
from stonechat_models.types import SamplingParams
from tests.models.dequantised import dequantised
from tests.models.engines import generate_all, greedy, make_engine, reference_greedy
from tests.models.tiny_models import FAMILIES, VOCAB_SIZE, tiny_model
from tests.models.tiny_tokenizers import ascii_backend
from tests.models.vision_models import vision_config
from tests.nightly import nightly

CPU = torch.device("cpu")
SHAPES = [(96, 64), (1000, 576), (33, 7), (130, 100)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
DAILY = ("llama", "gemma3", "gpt_neox", "qwen3_moe", "gpt_oss", "gpt2")
RELATIVE_ERROR = {"int8": 0.012, "int4": 0.11}
"""The largest error of a product of normally distributed numbers, in the Euclidean norm."""


@pytest.fixture(scope="module")
def team():
    try:
        return LinearTeam(load_library(), threads=2)
    except UnsupportedModelError as error:
        pytest.skip(str(error))


def random_layer(n, k, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(n, k, generator=generator), torch.randn(n, generator=generator)
    return weight.to(dtype), bias.to(dtype), torch.randn(37, k, generator=generator)


def relative_error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [FLOATS[0], *nightly(*FLOATS[1:])])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_equals_the_oracle(team, bits, dtype, shape):
    weight, bias, x = random_layer(*shape, dtype)
    kernel, oracle = NativeLinear(weight, bias, bits, team), TorchLinear(weight, bias, bits)
    same = dequantised(kernel) == dequantised(oracle)
    assert same.float().mean() >= (1.0 if bits == "int8" else 0.99)  # int4 may break ties otherwise
    tolerance = 1e-5 if bool(same.all()) else 0.05
    torch.testing.assert_close(kernel(x), oracle(x), rtol=tolerance, atol=tolerance)
    no_bias = NativeLinear(weight, None, bits, team)
    torch.testing.assert_close(no_bias(x) + bias, kernel(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_oracle_is_near_the_float_product(bits, shape):
    weight, bias, x = random_layer(*shape)
    oracle = TorchLinear(weight, bias, bits)
    exact = x.double() @ weight.double().T + bias.double()
    assert 0 < relative_error(oracle(x).double(), exact) < RELATIVE_ERROR[bits]
    assert relative_error(dequantised(oracle), weight) < RELATIVE_ERROR[bits]


@pytest.mark.parametrize("kind", ["kernel", "oracle"])
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_a_row_has_the_same_bits_in_any_batch(team, kind, bits):
    weight, bias, x = random_layer(200, 96)
    x = torch.cat([x] * 5)  # more rows than the kernel computes at once
    layer = quantized_linear(weight, bias, bits, team if kind == "kernel" else None)
    whole = layer(x)
    for start, end in [(0, 1), (3, 8), (36, 37), (5, 185), (180, 185)]:
        assert torch.equal(layer(x[start:end]), whole[start:end])


@pytest.mark.parametrize("dtype", FLOATS)
def test_outputs_have_the_shape_and_dtype_of_a_linear(team, dtype):
    weight, bias, x = random_layer(48, 64, dtype)
    x = x[:36].to(dtype).view(2, 18, 64)
    for layer in (quantized_linear(weight, bias, "int8", t) for t in (team, None)):
        assert (layer(x).shape, layer(x).dtype) == ((2, 18, 48), dtype)
        assert layer(x[:, :0]).shape == (2, 0, 48)


def test_rows_that_are_not_contiguous_are_read_right(team):
    weight, bias, x = random_layer(48, 64)
    layer = NativeLinear(weight.T.contiguous().T, bias, "int8", team)
    expected = NativeLinear(weight, bias, "int8", team)(x)
    assert torch.equal(layer(x.T.contiguous().T), expected)


def test_zero_weights_and_activations_give_zeros(team):
    for bits in ("int8", "int4"):
        for t in (team, None):
            layer = quantized_linear(torch.zeros(5, 40), None, bits, t)
            assert torch.equal(layer(torch.ones(2, 40)), torch.zeros(2, 5))
            layer = quantized_linear(torch.ones(5, 40), None, bits, t)
            assert torch.equal(layer(torch.zeros(2, 40)), torch.zeros(2, 5))


def test_int4_weights_are_no_worse_than_plain_rounding():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    groups = weight.reshape(64, 2, 32)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    plain = (((groups - low) / step).round() * step + low).reshape(64, 64)
    actual = dequantised(quantise(weight, "int4"))
    assert (actual - weight).norm() < (plain - weight).norm()


@pytest.mark.parametrize("dtype", FLOATS)
def test_weight_only_layers_multiply_the_dequantised_weight(dtype):
    weight, bias, x = random_layer(64, 96, dtype)
    layer, x = WeightOnlyLinear(weight, bias), x.to(dtype)
    expected = nn.functional.linear(x, dequantised(layer).to(dtype), bias)
    assert torch.equal(layer(x), expected)
    assert relative_error(dequantised(layer), weight.float()) < 0.015
    assert layer.num_bytes == 64 * 96 + 128 * weight.element_size()


def quantised_copy(module, bits="int8", team=None, **options):
    copied = copy.deepcopy(module)
    name, probe = quantize.quantize_checked(copied, bits, torch.float32, team, **options)
    return copied, name, probe


def logits_of(module, ids):
    module.set_attn_implementation("eager")
    with torch.inference_mode():
        return module(input_ids=ids, use_cache=False).logits.double()


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize(
    "family", [*DAILY, *nightly(*(name for name in FAMILIES if name not in DAILY))]
)
def test_families_stay_near_their_float_logits(team, family, bits):
    if family == "gpt2":
        torch.manual_seed(0)
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        module = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=VOCAB_SIZE, bos_token_id=1, eos_token_id=2, **sizes)
        ).eval()
    else:
        module = tiny_model(family)
        for parameter in module.parameters():  # to the scale of trained weights
            parameter.data.mul_(0.5)
    ids = torch.randint(3, VOCAB_SIZE, (4, 30), generator=torch.Generator().manual_seed(1))
    expected = logits_of(module, ids)
    copied, name, _ = quantised_copy(module, bits, team)
    assert name == bits
    actual = logits_of(copied, ids)
    spread = expected.std()
    difference = float((actual - expected).abs().median() / spread)
    assert 0 < difference < (0.05 if bits == "int8" else 0.4)
    oracle, _, _ = quantised_copy(module, bits, None)
    difference = float((actual - logits_of(oracle, ids)).abs().median() / spread)
    assert difference < 1e-4 or bits == "int4"
    assert quantize.weight_bytes(copied) < quantize.weight_bytes(module) * 0.75


@pytest.mark.parametrize("family", ["gemma3", "gpt_neox", "qwen3_moe", "gpt_oss"])
def test_quantised_engines_give_what_their_module_gives(team, family):
    copied, _, probe = quantised_copy(tiny_model(family), "int8", team)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (3, 17, 9)]
    results = generate_all(make_engine(copied, probe=probe), prompts, greedy(8))
    for prompt, result in zip(prompts, results, strict=True):
        token_ids, logprobs = reference_greedy(copied, prompt, 8)
        assert result.token_ids[0] == token_ids[0]
        entry = result.logprobs[0]  # first tokens only: quantisation amplifies rounding
        assert entry.logprob == pytest.approx(float(logprobs[0][entry.token_id]), abs=0.1)


@pytest.mark.parametrize("family", ["gemma2", *nightly("gpt_neox")])
def test_same_bits_however_scheduled(team, family):
    copied, _, probe = quantised_copy(tiny_model(family), "int8", team, deterministic=True)
    make_deterministic(copied)
    assert not any(type(m) is nn.Linear for m in copied.modules())
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=7, top_logprobs=4)
    prompts = [[5 + i] * (2 * i + 1) for i in (0, 2, 4, 5, 6)]

    def results(prompts, **limits):
        engine = make_engine(copied, RowBackend(), row_multiple=ROWS, probe=probe, **limits)
        return [(r.token_ids, r.logprobs) for r in generate_all(engine, prompts, params)]

    alone = [results([prompt])[0] for prompt in prompts]
    assert results(prompts) == alone
    assert results(prompts, max_batch_tokens=6, prefix_caching=False) == alone
    assert results(prompts, num_blocks=14, max_model_len=40, prefix_caching=False) == alone


def test_a_mixtures_token_does_not_depend_on_the_others(team):
    copied, name, _ = quantised_copy(tiny_model("qwen3_moe"), "int8", team)
    assert name == "int8"
    experts = next(m for m in copied.modules() if isinstance(m, QuantizedExperts))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 32, generator=generator)
    weights = torch.rand(40, 2, generator=generator)
    ids = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(40)])
    whole = experts(x, ids, weights)
    for start, end in [(0, 1), (7, 20), (39, 40)]:
        assert torch.equal(
            experts(x[start:end], ids[start:end], weights[start:end]), whole[start:end]
        )


def test_routers_embeddings_and_the_tied_head(team):
    module = tiny_model("gemma3", tie_word_embeddings=True)
    embedding = module.get_input_embeddings().weight.clone()
    copied, _, _ = quantised_copy(module, "int8", team)
    assert isinstance(copied.get_output_embeddings(), QuantizedLinear)
    assert torch.equal(copied.get_input_embeddings().weight, embedding)
    mixture, _, _ = quantised_copy(tiny_model("mixtral"), "int8", team)
    routers = [m for n, m in mixture.named_modules() if n.endswith(".gate")]
    assert routers
    assert not any(isinstance(m, QuantizedLinear) for m in routers)


def test_int4_keeps_the_head_in_8_bits(team):
    copied, _, _ = quantised_copy(tiny_model("gpt_neox"), "int4", team)
    head, layer = copied.lm_head, copied.gpt_neox.layers[0].mlp.dense_h_to_4h
    bits = [8 * m.num_bytes / (m.in_features * m.out_features) for m in (head, layer)]
    assert bits[0] > 8
    assert bits[1] < 8


def test_matrices_that_are_not_quantised_are_named(team):
    class Mixing(nn.Module):
        """Multiplies by a weight of its own, as some models do."""

        def __init__(self):
            super().__init__()
            self.mixer = nn.Parameter(torch.eye(32))

        def forward(self, x):
            return x @ self.mixer

    module = tiny_model("llama")
    module.model.layers[1].mlp.gate_proj = nn.Sequential(
        Mixing(), copy.deepcopy(module.model.layers[1].mlp.gate_proj)
    )
    _, name, _ = quantised_copy(module, "int8", team)
    assert name == "int8 (not: mixer)"


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_vision_tower_stays_as_it_is(team, family):
    module = transformers.AutoModelForImageTextToText.from_config(vision_config(family))
    in_text = {*module.get_decoder().modules(), module.get_output_embeddings()}
    num_tower = sum(isinstance(m, nn.Linear) and m not in in_text for m in module.modules())
    assert num_tower > 2
    assert quantize.quantize_module(module, "int8", team) == "int8 (not: vision tower)"
    linears = [m for m in module.modules() if isinstance(m, nn.Linear | QuantizedLinear)]
    assert sum(isinstance(m, nn.Linear) for m in linears) == num_tower


def test_weights_that_break_once_quantised_are_refused(team):
    module = tiny_model("llama")
    with torch.no_grad():  # 1e30 does not fit a group's half-precision scale
        module.model.layers[0].mlp.up_proj.weight.mul_(1e30)
        module.model.layers[0].mlp.down_proj.weight.mul_(1e-30)
    with pytest.raises(UnsupportedModelError, match="not finite"):
        quantised_copy(module, "int8", team)


def test_refusals_name_the_reason(team):
    with pytest.raises(UnsupportedModelError, match="device map"):
        quantized_linear(torch.empty(4, 4, device="meta"), None, "int8", team)
    module = nn.Module()
    module.get_output_embeddings = lambda: None
    with pytest.raises(UnsupportedModelError, match="no linear layers"):
        quantize.quantize_module(module, "int8", team)


def test_dtypes():
    config = EngineConfig(model="x", quantize="int8")
    assert quantize.dtypes(config, "bfloat16", CPU) == (torch.bfloat16, torch.float32)
    assert quantize.dtypes(config, "float16", CPU) == (torch.float32, torch.float32)
    with_dtype = replace(config, dtype="bfloat16")
    assert quantize.dtypes(with_dtype, "", CPU) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_build_engine_reports_what_it_did(team, bits, dtype, tmp_path):
    module = tiny_model("gemma3")
    module.to(torch.bfloat16).save_pretrained(tmp_path)
    ascii_backend().save(str(tmp_path / "tokenizer.json"))
    config = EngineConfig(
        model=str(tmp_path), quantize=bits, dtype=dtype, device="cpu", kv_cache_bytes=1 << 20
    )
    engine, _ = build_engine(config, lambda line: None)
    info = engine.model.info
    assert (info.quantization, info.backend) == (bits, "transformers")
    assert info.dtype == ("float32" if dtype == "auto" else dtype)
    assert info.num_parameters == sum(p.numel() for p in module.parameters())
    assert info.weight_bytes == quantize.weight_bytes(engine.model.module)
    assert any(isinstance(m, NativeLinear) for m in engine.model.module.modules())
    assert not any(type(m) is nn.Linear for m in engine.model.module.modules())
