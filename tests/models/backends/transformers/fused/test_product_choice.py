"""Products of few rows use the kernel that a timer found faster, if it is right."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from stonechat_models.backends.transformers.fused import attention, product_choice, products
from stonechat_models.backends.transformers.fused.linears import way_of
from stonechat_models.backends.transformers.fused.product_choice import (
    choose_faster,
    choose_products,
)
from stonechat_models.backends.transformers.fused.replace import fuse_modules
from stonechat_models.backends.transformers.fused.row_products.few_rows import (
    ROW_COUNTS,
    FewRowsTile,
    few_rows_qkv,
)
from stonechat_models.backends.transformers.fused.step_products import Product, product_groups
from stonechat_models.backends.transformers.packing_check import check_packing
from tests.models.tiny_models import VOCAB_SIZE, tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE = FewRowsTile(32, 1)
OTHER = FewRowsTile(64, 1)


def fused_model(family, **changes):
    module = tiny_model(family, **changes).to(DEVICE)
    check_packing(module, torch.device(DEVICE), VOCAB_SIZE)
    fuse_modules(module)
    return module


def choose(module, favourite, tiles=(TILE,)):
    """Let a timer choose that finds runs with the tile `favourite` fast, and other tiles slow."""
    timings = []
    for group in product_groups(module):
        linear = group[0].linear

        def seconds(run, linear=linear):
            tiles = [tile for n in ROW_COUNTS if (tile := way_of(linear, n)) is not None]
            return 1.0 if favourite in tiles else 3.0 if tiles else 2.0

        timings += choose_faster([group], seconds, tiles)
    return timings


@torch.inference_mode()
def test_the_faster_one_is_chosen():
    module = fused_model("llama", num_hidden_layers=1)
    timings = choose(module, OTHER, tiles=(TILE, OTHER))
    assert {t.kind for t in timings} == {"turned qkv", "output", "normed gate_up", "down"}
    assert {t.num_rows for t in timings} == set(ROW_COUNTS)
    assert all((t.torch, t.own, t.tile) == (2.0, 1.0, OTHER) for t in timings)
    for layer in module.model.layers:
        for linear in (layer.self_attn.qkv_proj, layer.mlp.down_proj):
            assert way_of(linear, 1) is way_of(linear, 4) is OTHER
            assert way_of(linear, 3) is None


@torch.inference_mode()
def test_as_many_products_are_timed_as_their_weights_exceed_the_cache(monkeypatch):
    """A time is that of one of them."""
    module = fused_model("llama", num_hidden_layers=3)
    group = next(g for g in product_groups(module) if g[0].kind == "down")
    monkeypatch.setattr(product_choice, "TIMED_BYTES", group[0].linear.weight.nbytes + 1)
    runs = []
    monkeypatch.setattr(Product, "run", lambda self, x, _: runs.append(self.linear) or x)

    def timer(run):
        runs.clear()
        run()
        return float(len(runs))

    timings = choose_faster([group], timer, (TILE,))
    assert len(runs) == 2
    assert all((timing.torch, timing.own) == (1.0, 1.0) for timing in timings)


@torch.inference_mode()
def test_torchs_product_stays_if_it_is_faster():
    module = fused_model("llama", num_hidden_layers=1)
    assert all((t.own, t.tile) == (3.0, TILE) for t in choose(module, None))
    for linear in module.modules():
        assert way_of(linear, 1) is None


@torch.inference_mode()
def test_a_tile_with_other_numbers_is_not_chosen(monkeypatch):
    module = fused_model("llama", num_hidden_layers=1)
    right = products.few_rows_product

    def wrong(x, linear, tile, **settings):
        return right(x, linear, tile, **settings).mul_(1.01)

    def other_keys(x, linear, tile, turns, slots, keys, values, **settings):
        query = few_rows_qkv(x, linear, tile, turns, slots, keys, values, **settings)
        keys *= 1.01
        return query

    monkeypatch.setattr(products, "few_rows_product", wrong)
    monkeypatch.setattr(attention, "few_rows_qkv", other_keys)
    assert all(t.tile is None for t in choose(module, TILE))
    assert way_of(module.model.layers[0].mlp.down_proj, 1) is None


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("gemma3", ["gate_up"]),  # its layers are not fused: the norm is another module's
        ("qwen3_moe", ["output", "qkv"]),
        ("gpt_neox", []),
    ],
)
def test_products_that_can_be_chosen(family, kinds):
    changes = {} if family == "gemma3" else {"num_hidden_layers": 1}
    groups = product_groups(fused_model(family, **changes))
    assert sorted(group[0].kind for group in groups) == kinds
    assert all(type(product.linear) is nn.Linear for group in groups for product in group)


def test_products_of_layers_with_recurrent_states():
    module = tiny_model("lfm2").to(DEVICE)
    fuse_modules(module)
    sizes = {group[0].kind: len(group) for group in product_groups(module)}
    assert sizes == {"gate_up": 3, "down": 3}


@pytest.mark.skipif(DEVICE == "cuda", reason="there the timer works")
def test_what_cannot_be_timed_stays(monkeypatch):
    module = fused_model("llama", num_hidden_layers=1)
    lines = []
    assert choose_products(module, lines.append) == []
    assert lines == []  # not on a CPU
    monkeypatch.setattr(product_choice.GraphTimer, "works_on", lambda _: True)
    assert choose_products(module, lines.append) == []
    assert "stay with PyTorch" in lines[0]
    assert way_of(module.model.layers[0].mlp.down_proj, 1) is None
