"""The product for a few rows, against float64. Models whose decode steps use it."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.fused import attention
from stonechat_models.backends.transformers.fused.attention import FusedAttention
from stonechat_models.backends.transformers.fused.linears import use_ways, way_of
from stonechat_models.backends.transformers.fused.modules import FusedRMSNorm
from stonechat_models.backends.transformers.fused.rotary import rope_and_store
from stonechat_models.backends.transformers.fused.row_products.few_rows import (
    ROW_COUNTS,
    FewRowsTile,
    few_rows_product,
    few_rows_qkv,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Of the largest number of a result: a few roundings."""
SMALL = FewRowsTile(2, 1)


def random(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)


def layer(num_out, num_in, bias=False, dtype=torch.float32):
    linear = nn.Linear(num_in, num_out, bias=bias, device="meta")
    linear.weight = nn.Parameter(random(num_out, num_in, dtype=dtype) / num_in**0.5)
    if bias:
        linear.bias = nn.Parameter(random(num_out, dtype=dtype))
    return linear.requires_grad_(False)


def expected(x, linear, norm=None, residual=None, gated=None):
    x = x.double()
    if norm is not None:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.epsilon)
        x = x * (norm.weight.double() + norm.offset)
    y = x @ linear.weight.double().T
    if linear.bias is not None:
        y = y + linear.bias.double()
    if gated is not None:
        gate, up = y.chunk(2, dim=-1)
        gelu = nn.functional.gelu(gate, approximate="tanh")
        y = up * (gelu if gated == "gelu" else nn.functional.silu(gate))
    return y if residual is None else y + residual.double()


def check(num_rows, linear, tile=SMALL, *, has_norm=False, adds=False, gated=None, dtype):
    num_in = linear.in_features
    x = random(num_rows, num_in, dtype=dtype, seed=1)
    norm = FusedRMSNorm(nn.Parameter(random(num_in, dtype=dtype)), 1e-5, 1.0, True)
    residual = random(num_rows, linear.out_features // (2 if gated else 1), dtype=dtype, seed=2)
    arguments = {
        "norm": norm if has_norm else None,
        "residual": residual if adds else None,
    }
    reference = expected(x, linear, gated=gated, **arguments)
    with torch.no_grad():
        actual = few_rows_product(
            x, linear, tile, is_gated=gated is not None, uses_gelu=gated == "gelu", **arguments
        )
    assert actual.dtype is dtype
    assert (actual is residual) is adds
    error = (actual.double() - reference).abs().max() / reference.abs().max()
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_rows", ROW_COUNTS)
def test_rows_and_dtypes(num_rows, dtype):
    check(num_rows, layer(6, 512, dtype=dtype), has_norm=True, dtype=dtype)
    check(num_rows, layer(6, 512, dtype=dtype), adds=True, dtype=dtype)


@pytest.mark.parametrize(("num_out", "num_in"), [(1, 8), (5, 100), (3, 257), (7, 768), (2, 1030)])
def test_any_size(num_out, num_in):
    check(2, layer(num_out, num_in, bias=True), has_norm=True, adds=True, dtype=torch.float32)


@pytest.mark.parametrize("tile", [(4, 4), (1, 2), (8, 1), (2, 8)], ids=str)
def test_tiles(tile):
    """With one tile of columns and with more."""
    for num_in in (300, 1300):
        check(1, layer(10, num_in), FewRowsTile(*tile), has_norm=True, dtype=torch.float32)
        check(2, layer(10, num_in), FewRowsTile(*tile), gated="silu", dtype=torch.float32)


@pytest.mark.parametrize("gated", ["silu", "gelu"])
@pytest.mark.parametrize("has_norm", [False, True])
def test_gates(gated, has_norm):
    linear = layer(10, 300, bias=has_norm)
    check(2, linear, has_norm=has_norm, gated=gated, dtype=torch.float32)


def test_a_row_does_not_depend_on_the_others():
    linear, rows = layer(5, 300), random(4, 300)
    product = few_rows_product(rows, linear, SMALL)
    assert torch.equal(few_rows_product(rows[2:3], linear, SMALL), product[2:3])


def test_rows_with_any_stride():
    linear, rows = layer(5, 300), random(2, 400)
    product = few_rows_product(rows[:, :300].contiguous(), linear, SMALL)
    assert torch.equal(few_rows_product(rows[:, :300], linear, SMALL), product)
    turned = rows[:, :300].T.contiguous().T
    assert torch.equal(few_rows_product(turned, linear, SMALL), product)


def test_only_ordinary_layers_that_were_chosen_have_a_tile():
    class Other(nn.Linear):
        pass

    linear = layer(5, 8)
    assert way_of(linear, 1) is None
    use_ways(linear, {1: SMALL})
    assert way_of(linear, 1) is SMALL
    assert way_of(linear, 2) is None
    other = Other(8, 5)
    use_ways(other, {1: SMALL})
    assert way_of(other, 1) is None
    use_ways(linear, {})
    assert way_of(linear, 1) is None


@pytest.mark.parametrize(
    ("heads", "size", "angles", "bias", "dtype"),
    [
        ((2, 1), 16, 16, False, torch.bfloat16),
        ((3, 1), 24, 12, True, torch.float32),
        ((2, 2), 8, 8, False, torch.float16),
    ],
)
def test_heads_are_rotated_and_stored(heads, size, angles, bias, dtype):
    """As the product, and then the kernel that rotates what it is given."""
    num_heads, num_kv_heads = heads
    linear = layer((num_heads + 2 * num_kv_heads) * size, 300, bias=bias, dtype=dtype)
    norm = FusedRMSNorm(nn.Parameter(random(300, dtype=dtype)), 1e-5, 0.0, True)
    x = random(2, 300, dtype=dtype)
    turns = random(1, 2, angles).mul_(3)
    turns = (turns.cos().to(dtype), turns.sin().to(dtype))
    slots = torch.tensor([3, 1], device=DEVICE)
    places = [torch.full((2, 5, num_kv_heads, size), 7.0).to(x) for _ in range(2)]
    with torch.no_grad():
        tile = FewRowsTile(8, 1)
        query = few_rows_qkv(x, linear, tile, turns, slots, *places[0], norm=norm)
        qkv = few_rows_product(x, linear, tile, norm=norm)
        reference = rope_and_store(
            qkv, turns, slots, *places[1], num_heads=num_heads, rotary_size=size, norms=None
        )
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(query, reference, **close)
    torch.testing.assert_close(places[0], places[1], **close)
    is_written = (places[0] != 7.0).flatten(2).any(dim=2)
    assert is_written.tolist() == [[False, True, False, True, False]] * 2


def test_a_cache_of_another_dtype_gets_its_own_kernel(monkeypatch):
    """The product that stores keys and values was compared at load in the model's dtype only."""
    monkeypatch.setattr(attention, "few_rows_qkv", None)
    linear = layer(3 * 8, 16, dtype=torch.bfloat16)
    use_ways(linear, {1: SMALL})
    heads = {"num_heads": 1, "num_kv_heads": 1, "head_size": 8, "rotary_size": 8, "norms": None}
    fused = FusedAttention(linear, nn.Identity(), layer=0, spec=AttentionSpec(1.0), **heads)
    assert fused.turns_in_product
    x = torch.ones(1, 16, dtype=torch.bfloat16, device=DEVICE)
    turns = (torch.ones(1, 1, 8).to(x), torch.zeros(1, 1, 8).to(x))
    keys, values = torch.zeros(2, 1, 1, 8, device=DEVICE).to(torch.float8_e4m3fn)
    slots = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    linear.weight.data.fill_(2.0)
    query, _ = fused.project(x, None, turns, slots, keys, values)
    assert (query == 32).all()
    assert (keys.float() == 32).all()
    assert (values.float() == 32).all()
