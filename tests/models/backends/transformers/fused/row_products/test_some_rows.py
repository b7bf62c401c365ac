"""The product for some rows, against float64, and its choice among the ways to multiply."""

import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.transformers.fused.linears import way_of
from stonechat_models.backends.transformers.fused.product_choice import TIMED_COUNTS, choose_faster
from stonechat_models.backends.transformers.fused.row_products import some_rows as some_rows_module
from stonechat_models.backends.transformers.fused.row_products.few_rows import FewRowsTile
from stonechat_models.backends.transformers.fused.row_products.some_rows import (
    ROW_COUNTS,
    SomeRows,
    SomeRowsTile,
    some_rows_product,
)
from stonechat_models.backends.transformers.fused.step_products import product_groups
from tests.models.backends.transformers.fused.row_products.test_few_rows import (
    DEVICE,
    TOLERANCE,
    expected,
    layer,
    random,
)
from tests.models.backends.transformers.fused.test_product_choice import fused_model

SMALL = SomeRowsTile(outputs=32, inputs=32, num_warps=4, num_stages=2)


def way(tile=SMALL, num_multiprocessors=1):
    counters = torch.zeros(64, dtype=torch.int32, device=DEVICE)
    return SomeRows(tile, num_multiprocessors, counters)


def check(num_rows, linear, how, *, adds=False, gated=None, dtype=torch.bfloat16):
    x = random(num_rows, linear.in_features, dtype=dtype, seed=1)
    residual = random(num_rows, linear.out_features // (2 if gated else 1), dtype=dtype, seed=2)
    reference = expected(x, linear, gated=gated, residual=residual if adds else None)

    def product():
        return some_rows_product(
            x,
            linear,
            how,
            residual=residual.clone() if adds else None,
            is_gated=gated is not None,
            uses_gelu=gated == "gelu",
        )

    with torch.no_grad():
        actual, again = product(), product()
    assert actual.dtype is dtype
    error = (actual.double() - reference).abs().max() / reference.abs().max()
    assert error < TOLERANCE[dtype]
    assert torch.equal(actual, again), "its sums have one order, and its counters are zeros again"
    assert int(how.counters.abs().max()) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [1, *ROW_COUNTS])
def test_rows_and_dtypes(num_rows, dtype):
    linear = layer(40, 256, dtype=dtype)
    check(num_rows, linear, way(), dtype=dtype)
    check(num_rows, linear, way(num_multiprocessors=4), adds=True, dtype=dtype)


@pytest.mark.parametrize("num_multiprocessors", [1, 4], ids=["whole", "split"])
@pytest.mark.parametrize(("num_out", "num_in"), [(34, 300), (64, 256), (2, 8)])
def test_any_size(num_out, num_in, num_multiprocessors):
    how = way(num_multiprocessors=num_multiprocessors)
    linear = layer(num_out, num_in, bias=True, dtype=torch.bfloat16)
    check(9, linear, how, adds=True)
    check(16, linear, how, gated="silu")


@pytest.mark.parametrize("num_multiprocessors", [1, 4], ids=["whole", "split"])
def test_gelu(num_multiprocessors):
    linear = layer(96, 256, dtype=torch.float16)
    how = way(num_multiprocessors=num_multiprocessors)
    check(8, linear, how, gated="gelu", dtype=torch.float16)


@pytest.mark.parametrize(
    ("num_parts", "size", "steps"),
    [(8, 4096, 4), (32, 4096, 8), (200, 4096, 64), (8, 256, 4), (8, 100, 2), (65, 4096, 64)],
)
def test_inputs_are_split_until_the_device_is_full(num_parts, size, steps):
    """Two programs on each of 132 multiprocessors, with four steps at least."""
    how = way(SomeRowsTile(inputs=64), 132)
    assert how.steps(num_parts, size) == steps


def test_strided_rows():
    linear, rows = layer(33, 300, dtype=torch.bfloat16), random(9, 400, dtype=torch.bfloat16)
    product = some_rows_product(rows[:, :300].contiguous(), linear, way())
    assert torch.equal(some_rows_product(rows[:, :300], linear, way()), product)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_faster_one_is_chosen_for_each_number_of_rows(dtype, monkeypatch):
    """It is right in all places of a layer, or it would not be chosen."""
    module = fused_model("llama", num_hidden_layers=1).to(dtype)
    monkeypatch.setattr(some_rows_module, "LEAST_STEPS", 1)
    how, few = way(SomeRowsTile(16, 16, 4, 2), 64), FewRowsTile(32, 1)

    times = iter([2.0, 1.0] * 100)
    timings = choose_faster(product_groups(module), lambda run: next(times), [few], [how])
    is_half = dtype is torch.bfloat16
    assert {t.num_rows for t in timings} == {1, 2, 4, *(TIMED_COUNTS if is_half else ())}
    assert all(t.tile is (few if t.num_rows < 8 else how) for t in timings)
    down = module.model.layers[0].mlp.down_proj
    assert way_of(down, 4) is few
    assert all(way_of(down, n) is (how if is_half else None) for n in ROW_COUNTS)
