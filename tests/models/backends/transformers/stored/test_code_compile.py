"""Products with codes are compiled before they are needed, and computed only when they are."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from stonechat_models.backends.quantization.codes import code_products
from stonechat_models.backends.quantization.codes.coded_linear import CodedLinear
from stonechat_models.backends.quantization.scratch import Scratch
from stonechat_models.backends.transformers.loading import load
from stonechat_models.backends.transformers.stored.code_compile import compile_products
from tests.models.random_codes import random_codes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def layer():
    parts = [random_codes(name, 16, 256, DEVICE) for name in ("Q4_K", "Q6_K")]
    return CodedLinear(parts, None, Scratch(DEVICE, torch.float32), torch.float32)


@pytest.fixture
def products(monkeypatch):
    """The rows and the format of each product, and whether it is only compiled."""
    found = []

    def multiply_into(output, x, codes, bias, scratch, *, compiles_only):
        found.append((len(x), codes.format.name, compiles_only))

    monkeypatch.setattr(code_products, "multiply_into", multiply_into)
    return found


def test_all_kernels_of_all_layers_are_compiled(layer, products):
    compile_products(nn.Sequential(nn.Linear(2, 2), layer, nn.Sequential(layer)).modules())
    assert products == [
        (num_rows, name, True) for num_rows in (1, 2, 4, 5) for name in ("Q4_K", "Q6_K")
    ]


def test_a_model_without_codes_starts_no_threads(monkeypatch):
    monkeypatch.setattr("triton.AsyncCompileMode", None)
    compile_products([nn.Linear(2, 2)])


def test_nothing_is_computed(layer):
    for num_rows in code_products.KERNEL_ROWS:
        output = torch.ones(num_rows, 16, device=DEVICE)
        x = torch.ones(num_rows, 256, device=DEVICE)
        settings = {"compiles_only": True}
        code_products.multiply_into(output, x, layer.parts[0], None, layer.scratch, **settings)
        assert bool((output == 1).all())


def test_steps_are_prepared_with_them(layer, products):
    load._prepare_steps(nn.Sequential(layer, nn.LayerNorm(32, device=DEVICE)), 16, print)
    assert {is_compiled for _, _, is_compiled in products} == {True}
