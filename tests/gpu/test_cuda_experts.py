"""Experts of a mixture on a CUDA device: real sizes against float64, in a graph, in an engine."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn

from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.cuda.memory import CudaCapturer
from stonechat_models.backends.transformers.fused.modules import MergedMLP
from stonechat_models.backends.transformers.fused.moe import expert_kernels as kernels
from stonechat_models.backends.transformers.fused.moe.coded_experts import CodedExpertLinear, Rows
from stonechat_models.backends.transformers.fused.moe.experts import (
    Activation,
    ExpertLinear,
    FusedExperts,
)
from stonechat_models.backends.transformers.fused.moe.mixture import FusedMixture
from stonechat_models.backends.transformers.fused.moe.router import FusedRouter, Scoring
from tests.gpu.test_cuda_engine import assert_near, build, prompts, tiny_pair
from tests.models.dequantised import dequantised
from tests.models.engines import generate_all, greedy
from tests.models.random_codes import random_codes

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SMALL = {"num_experts": 8, "top_k": 2, "hidden": 64, "inner": 48}
QWEN3_30B = {"num_experts": 128, "top_k": 8, "hidden": 2048, "inner": 768}
GPT_OSS_20B = {"num_experts": 32, "top_k": 4, "hidden": 2880, "inner": 2880}
MIXTRAL_8X7B = {"num_experts": 8, "top_k": 2, "hidden": 4096, "inner": 14336}
SILU = Activation(kernels.SILU.value)
CLAMPED = Activation(kernels.SILU.value, is_interleaved=True, alpha=1.702, limit=7.0, offset=1.0)


class Case:
    """Random experts of a real size."""

    def __init__(
        self, device, dtype, *, num_experts, top_k, hidden, inner, activation=SILU, is_gpt_oss=False
    ):
        torch.manual_seed(0)
        self.device, self.dtype, self.activation = device, dtype, activation
        self.num_experts, self.top_k, self.hidden = num_experts, top_k, hidden

        def linear(rows, columns):
            shape = (num_experts, columns, rows) if is_gpt_oss else (num_experts, rows, columns)
            weight = torch.randn(shape, device=device, dtype=dtype).mul_(columns**-0.5)
            bias = torch.randn(num_experts, rows, device=device, dtype=dtype)
            return ExpertLinear(
                nn.Parameter(weight, requires_grad=False),
                nn.Parameter(bias, requires_grad=False) if is_gpt_oss else None,
                is_transposed=is_gpt_oss,
            )

        self.module = FusedExperts(linear(2 * inner, hidden), linear(hidden, inner), activation)

    def inputs(self, num_tokens):
        x = torch.randn(num_tokens, self.hidden, device=self.device, dtype=self.dtype)
        scores = torch.randn(num_tokens, self.num_experts, device=self.device)
        values, ids = scores.topk(self.top_k)
        return x, ids, values.softmax(dim=-1).to(self.dtype)

    def reference(self, x, ids, routing):
        output = torch.zeros(x.shape, dtype=torch.float64, device=self.device)
        for expert in range(self.num_experts):
            token, place = torch.where(ids == expert)
            rows = product(self.module.up, expert, x[token].double())
            rows = product(self.module.down, expert, self.activation(rows))
            output.index_add_(0, token, rows * routing[token, place, None].double())
        return output

    def check(self, num_tokens):
        inputs = self.inputs(num_tokens)
        expected, actual = self.reference(*inputs), self.module(*inputs)
        error = (actual.double() - expected).abs().max() / expected.abs().max()
        assert float(error) < TOLERANCE[self.dtype]
        assert torch.equal(self.module(*inputs), actual)


def product(linear, expert, rows):
    weight = linear.weight[expert].double()
    result = rows @ (weight if linear.is_transposed else weight.T)
    return result if linear.bias is None else result + linear.bias[expert].double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.inference_mode()
def test_qwen3_30b_against_float64(dtype, device):
    case = Case(device, dtype, **QWEN3_30B)
    for num_tokens in (1, 2, 33, 64, 256, 2000):
        case.check(num_tokens)


@torch.inference_mode()
def test_gpt_oss_20b_against_float64(device):
    case = Case(device, torch.bfloat16, **GPT_OSS_20B, activation=CLAMPED, is_gpt_oss=True)
    for num_tokens in (1, 64, 1000):
        case.check(num_tokens)


@torch.inference_mode()
def test_mixtral_8x7b_against_float64(device):
    case = Case(device, torch.bfloat16, **MIXTRAL_8X7B)
    for num_tokens in (1, 16, 500):
        case.check(num_tokens)


@torch.inference_mode()
def test_float32_against_float64(device):
    case = Case(device, torch.float32, **QWEN3_30B)
    for num_tokens in (1, 64):
        case.check(num_tokens)


@pytest.mark.parametrize("type_name", ["MXFP4", "Q4_K", "Q6_K", "Q8_0"])
@torch.inference_mode()
def test_quantised_experts_multiply_as_their_floats(type_name, device):
    """With the rows of gates and their counterparts as gpt-oss and GGUF files have them."""
    experts, hidden, inner, top_k = 16, 2048, 768, 4
    rows = Rows.PAIRS if type_name == "MXFP4" else Rows.APART
    up = random_codes(type_name, experts * 2 * inner, hidden, device, 0, hidden**-0.5)
    down = random_codes(type_name, experts * hidden, inner, device, 1, inner**-0.5)
    floats = dequantised(up)
    if rows is Rows.APART:
        floats = floats.view(2, experts, inner, hidden).transpose(0, 1)
    weights = (floats.reshape(experts, -1, hidden), dequantised(down).view(experts, hidden, inner))
    plain = [
        ExpertLinear(nn.Parameter(weight, requires_grad=False), None, is_transposed=False)
        for weight in weights
    ]
    activation = CLAMPED if rows is Rows.PAIRS else SILU
    exact = FusedExperts(*plain, activation)
    coded = [
        CodedExpertLinear(codes, experts, None, torch.bfloat16, r)
        for codes, r in ((up, rows), (down, Rows.HALVES))
    ]
    module = FusedExperts(*coded, activation)
    for num_tokens in (1, 3, 64, 700):
        x = torch.randn(num_tokens, hidden, device=device, dtype=torch.bfloat16)
        values, ids = torch.randn(num_tokens, experts, device=device).topk(top_k)
        routing = values.softmax(dim=-1)
        expected, actual = exact(x.float(), ids, routing), module(x, ids, routing)
        error = (actual.float() - expected).norm() / expected.norm()
        assert float(error) < 0.02, num_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_experts", [32, 128, 512])
@torch.inference_mode()
def test_a_router_chooses_as_pytorch(num_experts, dtype, device):
    torch.manual_seed(0)
    weight = torch.randn(num_experts, 2048, device=device, dtype=dtype).mul_(0.05)
    scoring = Scoring(False, False, True, 1.0, torch.float32)
    router = FusedRouter(nn.Parameter(weight, requires_grad=False), scoring, top_k=8)
    logits, weights, ids = router(torch.randn(300, 2048, device=device, dtype=dtype))
    values, _ = logits.float().softmax(dim=-1).topk(8)
    chosen = logits.float().softmax(dim=-1).gather(1, ids)
    torch.testing.assert_close(chosen, values, rtol=1e-4, atol=1e-7)  # ties may differ in ids
    assert all(len(set(row)) == 8 for row in ids.tolist())
    torch.testing.assert_close(weights, chosen / chosen.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("num_tokens", [1, 64])
@torch.inference_mode()
def test_a_graph_has_the_bits_of_a_plain_run(num_tokens, device):
    case = Case(device, torch.bfloat16, **QWEN3_30B)
    static = case.inputs(num_tokens)
    replay = CudaCapturer(device).capture(partial(case.module, *static))
    for _ in range(3):
        inputs = case.inputs(num_tokens)
        for target, source in zip(static, inputs, strict=True):
            target.copy_(source)
        assert torch.equal(replay(), case.module(*inputs))


def dense(num_out, num_in, device):
    """A layer of random weights, in bfloat16."""
    made = nn.Linear(num_in, num_out, bias=False, device=device, dtype=torch.bfloat16)
    nn.init.normal_(made.weight, std=num_in**-0.5)
    return made.requires_grad_(False)


@pytest.mark.parametrize("has_shared", [False, True], ids=["experts", "shared"])
@pytest.mark.parametrize("sizes", [SMALL, QWEN3_30B], ids=["small", "qwen3-30b"])
@torch.inference_mode()
def test_a_block_adds_its_experts_and_the_shared_mlp(sizes, has_shared, device):
    """To the residual in place, in a graph too."""
    case = Case(device, torch.bfloat16, **sizes)
    hidden, inner = sizes["hidden"], sizes["inner"]
    shared = None
    if has_shared:
        shared = MergedMLP(dense(2 * inner, hidden, device), dense(hidden, inner, device))
    scoring = Scoring(False, False, True, 1.0, torch.bfloat16)
    gate = dense(sizes["num_experts"], hidden, device).weight
    router = FusedRouter(gate, scoring, top_k=sizes["top_k"])
    mixture = FusedMixture(router, case.module, shared)
    for num_tokens in (1, 4, 33):
        x, residual = (
            torch.randn(num_tokens, hidden, device=device, dtype=torch.bfloat16) for _ in range(2)
        )
        weights, ids = router.choose(x)
        expected = case.reference(x, ids, weights)
        if shared is not None:
            gates, ups = (x.double() @ shared.gate_up_proj.weight.double().T).chunk(2, dim=1)
            inner_rows = nn.functional.silu(gates) * ups
            expected += inner_rows @ shared.down_proj.weight.double().T
        limit = 2 * TOLERANCE[torch.bfloat16] * expected.abs().max()  # rounded twice more
        assert float((mixture(x).double() - expected).abs().max()) < limit
        summed = mixture.add_to(residual.clone(), x)
        assert float((summed.double() - residual.double() - expected).abs().max()) < limit
        replay = CudaCapturer(device).capture(
            lambda x=x, residual=residual: mixture.add_to(residual.clone(), x)
        )
        assert all(torch.equal(replay(), summed) for _ in range(3))


@torch.inference_mode()
def test_all_tokens_may_choose_one_expert(device):
    case = Case(device, torch.bfloat16, **{**QWEN3_30B, "top_k": 1})
    x, ids, routing = case.inputs(300)
    inputs = (x, ids.fill_(77), routing)
    expected, actual = case.reference(*inputs), case.module(*inputs)
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert float(error) < TOLERANCE[torch.bfloat16]


@torch.inference_mode()
def test_nothing_waits_for_the_device(device):
    case = Case(device, torch.bfloat16, **QWEN3_30B)
    inputs = case.inputs(64)
    case.module(*inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        case.module(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "olmoe", "glm4_moe", "granitemoe"])
def test_tokens_are_those_of_plain_transformers_in_graphs(family, dtype, device):
    module, reference = tiny_pair(family, device, dtype)
    lines = []
    name = str(dtype).removeprefix("torch.")
    engine = build(module, device, dtype=name, progress=lines.append)
    kinds = {type(part) for part in module.modules()}
    assert {FusedExperts, FusedRouter} <= kinds
    if family in ("mixtral", "glm4_moe"):
        assert FusedMixture in kinds
    assert isinstance(engine.model, GraphedModel)
    assert engine.model._graphs, lines
    tolerance = 1e-3 if dtype is torch.float32 else 0.25
    assert_near(reference, generate_all(engine, prompts(), greedy(12)), tolerance)
