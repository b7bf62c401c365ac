"""Merged linear layers compute what the layers compute, or are refused."""

import torch
from torch import nn

from stonechat_models.backends.transformers.fused.linears import (
    adds_in_product,
    is_plain,
    merged_linear,
)


class OtherLinear(nn.Linear):
    pass


def linear(num_in=8, num_out=4, **options):
    torch.manual_seed(num_out)
    return nn.Linear(num_in, num_out, **options)


def test_a_merged_layer_has_the_outputs_of_all():
    x = torch.randn(3, 8)
    for bias in (False, True):
        parts = [linear(num_out=size, bias=bias) for size in (4, 6, 2)]
        merged = merged_linear(parts)
        assert merged.out_features == 12
        torch.testing.assert_close(merged(x), torch.cat([part(x) for part in parts], dim=-1))
        assert adds_in_product(merged) is not bias


def test_layers_that_differ_are_not_merged():
    others = [
        linear(num_in=16),
        linear(dtype=torch.bfloat16),
        linear(bias=False),
        linear(device="meta"),
        OtherLinear(8, 4),
        nn.Identity(),
    ]
    for other in others:
        assert merged_linear([linear(), other]) is None
    assert merged_linear([linear(), linear()]) is not None


def test_only_an_ordinary_weight_is_plain():
    class Weight(nn.Parameter):
        pass

    assert is_plain(linear())
    odd = linear()
    odd.weight = Weight(odd.weight.data)
    assert not is_plain(odd)
    assert not is_plain(linear(device="meta"))
    assert not is_plain(OtherLinear(8, 4))
    assert not adds_in_product(OtherLinear(8, 4, bias=False))
