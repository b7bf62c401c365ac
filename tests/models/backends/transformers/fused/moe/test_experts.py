"""The grouped products of experts, against float64 and one pair at a time."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from stonechat_models.backends.transformers.fused.moe import expert_kernels as kernels
from stonechat_models.backends.transformers.fused.moe.experts import (
    FLOAT32_TILES,
    TILES,
    Activation,
    ExpertLinear,
    FusedExperts,
    choose_tile,
    group,
    tiles_of,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SILU = Activation(kernels.SILU.value)
CLAMPED = Activation(kernels.SILU.value, is_interleaved=True, alpha=1.702, limit=1.0, offset=1.0)
SQUARED = Activation(kernels.RELU_SQUARED.value, is_gated=False)


class Case:
    """Random experts and tokens. `reference` computes each pair by itself, in float64."""

    def __init__(
        self,
        num_experts=4,
        top_k=2,
        num_tokens=5,
        *,
        hidden=32,
        inner=24,
        dtype=torch.float32,
        activation=SILU,
        has_bias=False,
        is_transposed=False,
    ):
        generator = torch.Generator().manual_seed(0)

        def random(*shape):
            return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)

        self.activation = activation
        self.dtype = dtype
        outputs = 2 * inner if activation.is_gated else inner
        self.up, self.down = (
            random(num_experts, outputs, hidden),
            random(num_experts, hidden, inner),
        )
        self.up_bias = random(num_experts, outputs) if has_bias else None
        self.down_bias = random(num_experts, hidden) if has_bias else None
        self.x = random(num_tokens, hidden)
        scores = torch.randn(num_tokens, num_experts, generator=generator)
        self.ids = scores.topk(top_k).indices.to(DEVICE)
        self.routing = torch.rand(num_tokens, top_k, generator=generator).to(DEVICE)
        self.module = FusedExperts(
            self.linear(self.up, self.up_bias, is_transposed),
            self.linear(self.down, self.down_bias, is_transposed),
            activation,
        )

    def linear(self, weight, bias, is_transposed):
        stored = weight.transpose(1, 2).contiguous() if is_transposed else weight
        return ExpertLinear(
            nn.Parameter(stored),
            None if bias is None else nn.Parameter(bias),
            is_transposed=is_transposed,
        )

    def reference(self):
        output = torch.zeros_like(self.x, dtype=torch.float64)
        for (token, place), expert in zip(
            torch.cartesian_prod(*map(torch.arange, self.ids.shape)).tolist(),
            self.ids.flatten().tolist(),
            strict=True,
        ):
            row = product(self.up[expert], self.x[token], self.up_bias, expert)
            row = product(self.down[expert], self.activation(row), self.down_bias, expert)
            output[token] += row * self.routing[token, place]
        return output

    @torch.inference_mode()
    def run(self, tile=None):
        return self.module(self.x, self.ids, self.routing.to(self.dtype), tile)

    def check(self, tile=None):
        expected = self.reference()
        actual = self.run(tile)
        assert actual.dtype == self.dtype
        error = (actual.double() - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE[self.dtype]


def product(matrix, row, biases, expert):
    result = matrix.double() @ row.double()
    return result if biases is None else result + biases[expert].double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_dtypes(dtype, num_tokens):
    Case(dtype=dtype, num_tokens=num_tokens).check()


@pytest.mark.parametrize("activation", [CLAMPED, SQUARED], ids=["clamped", "squared"])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_layouts(activation, is_transposed):
    Case(activation=activation, has_bias=True, is_transposed=is_transposed, hidden=48).check()


@pytest.mark.parametrize("kind", [kernels.GELU_TANH, kernels.GELU, kernels.NONE])
def test_activations(kind):
    activation = Activation(kind.value, is_gated=kind is not kernels.NONE)
    case = Case(activation=activation)
    if kind is kernels.NONE:
        case.activation = lambda x: x
    case.check()


@pytest.mark.parametrize(
    "shape", [(128, 8, 7), (2, 1, 40), (2, 2, 40), (1, 1, 3), (3, 3, 1)], ids=str
)
def test_numbers_of_experts(shape):
    Case(*shape).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_tiles(dtype):
    case = Case(num_tokens=40, hidden=80, inner=72, dtype=dtype)
    for tile in tiles_of(dtype).values():
        case.check(tile)


@pytest.mark.parametrize("num_tokens", [2, 40])
def test_all_tokens_may_choose_one_expert(num_tokens):
    case = Case(num_tokens=num_tokens, top_k=1)
    case.ids.fill_(2)
    case.check()


def test_an_expert_may_be_chosen_twice():
    case = Case(num_tokens=1)
    case.ids.fill_(3)
    case.check()


def test_padding_rows_change_no_others():
    case = Case(num_tokens=8)
    tile = FLOAT32_TILES[16]
    expected = case.run(tile)[:5]
    case.x[5:] = 2.0
    case.ids[5:] = case.ids[0]
    assert torch.equal(case.run(tile)[:5], expected)


def test_the_bits_do_not_depend_on_the_other_tokens():
    case = Case(num_tokens=20, dtype=torch.float16)
    together = case.run(TILES[16])
    for name in ("x", "ids", "routing"):
        setattr(case, name, getattr(case, name)[7:9].contiguous())
    assert torch.equal(case.run(TILES[16]), together[7:9])


@pytest.mark.parametrize("tile", TILES.values(), ids=str)
@pytest.mark.parametrize(("num_tokens", "top_k"), [(2, 1), (3, 4), (50, 2), (300, 8)])
def test_groups(num_tokens, top_k, tile):
    """Every pair is in one tile of its expert, in order. The tiles beyond the last are marked."""
    num_experts = 20
    generator = torch.Generator().manual_seed(num_tokens)
    scores = torch.randn(num_tokens, num_experts, generator=generator)
    ids = scores.topk(top_k).indices.to(DEVICE)
    groups = group(ids, num_experts, tile)
    experts, pairs = groups.experts.tolist(), groups.pairs.tolist()
    num_used = sum(expert >= 0 for expert in experts)
    assert experts == sorted(experts[:num_used]) + [-1] * (len(experts) - num_used)
    flat = ids.flatten().tolist()
    for expert in range(num_experts):
        tiles = [row for e, row in zip(experts, pairs, strict=True) if e == expert]
        own = [i for i, e in enumerate(flat) if e == expert]
        assert len(tiles) == -(-len(own) // tile.pairs)
        padding = [len(flat)] * (len(tiles) * tile.pairs - len(own))
        assert [pair for row in tiles for pair in row] == own + padding


def test_the_tile_grows_with_the_pairs_of_an_expert():
    half = torch.bfloat16
    assert choose_tile(1, 8, 128, half) is TILES[16]
    assert choose_tile(64, 8, 128, half) is TILES[16]
    assert choose_tile(256, 8, 128, half) is TILES[64]
    assert choose_tile(4096, 8, 128, half) is TILES[128]
    assert choose_tile(16, 2, 2, half) is TILES[16]  # no expert has more pairs than tokens
    assert choose_tile(4096, 8, 128, torch.float32) is FLOAT32_TILES[32]
    assert set(tiles_of(half)) == {16, 64, 128}
