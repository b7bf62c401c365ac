"""Quantised weights on a CUDA device: products against float products, and engines with graphs."""

import copy

import pytest
import torch

from stonechat_models.backends.quantization.choose import quantized_linear
from stonechat_models.backends.quantization.device_support import refuse_weight_format
from stonechat_models.backends.quantization.linear import QuantizedLinear
from stonechat_models.backends.transformers.attention.choose import choose_attention
from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.fused.replace import fuse_modules
from stonechat_models.backends.transformers.loading import quantize
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.packing_check import check_packing
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.runtime.assemble import assemble_engine
from tests.models.engines import generate_all, greedy, model_info
from tests.models.tiny_models import VOCAB_SIZE, tiny_model

RELATIVE_ERROR = {"int8": 0.015, "int4": 0.13, "fp8": 0.05}
"""The largest error of a product of normally distributed numbers, in the Euclidean norm."""


@pytest.fixture(params=["int8", "int4", "fp8"])
def precision(request, device):
    config = EngineConfig(model="x", quantize=request.param)
    try:
        refuse_weight_format(config, device)
    except UnsupportedModelError as error:
        pytest.skip(str(error))
    return request.param


@pytest.mark.parametrize("num_rows", [1, 5, 300])
@pytest.mark.parametrize("shape", [(96, 64), (1008, 576), (4096, 4096)])
def test_products_are_near_float_products(device, precision, shape, num_rows):
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, shape[1], generator=generator) for n in (shape[0], num_rows))
    bias = torch.randn(shape[0], generator=generator)
    weight, x, bias = (t.to(device, torch.bfloat16) for t in (weight, x, bias))
    weight[3] = 0.0  # a row of zeros
    layer = quantized_linear(weight, bias, precision, None)
    exact = x.double() @ weight.double().T + bias.double()
    assert float((layer(x).double() - exact).norm() / exact.norm()) < RELATIVE_ERROR[precision]
    assert (layer(torch.zeros_like(x)) == bias).all()


def test_quantised_engines_with_graphs_are_near_plain_engines(device, precision):
    module = tiny_model("llama", hidden_size=64, intermediate_size=96)
    for parameter in module.parameters():  # to the scale of trained weights
        parameter.data.mul_(0.5)
    module = module.to(device, torch.bfloat16)

    def answers(module, *, eager):
        """Log-probabilities of two tokens: one after the prompt, one from a graph's replay."""
        module = copy.deepcopy(module)
        backend = choose_attention("auto", device)
        probe = check_packing(module, device, VOCAB_SIZE)
        fuse_modules(module)
        if not eager:
            quantize.quantize_checked(module, precision, torch.bfloat16, None, probe=probe)
            assert sum(isinstance(m, QuantizedLinear) for m in module.modules()) == 2 * 4
        info = model_info(device=str(device), dtype="bfloat16")
        engine = assemble_engine(
            TransformersModel(module, info, backend, probe=probe),
            EngineConfig(
                model="tiny",
                max_num_seqs=4,
                max_batch_tokens=64,
                kv_cache_bytes=8 << 20,
                eager=eager,
            ),
            device,
            max_model_len=100,
            eos_token_ids=frozenset(),
            progress=lambda line: None,
        )
        assert isinstance(engine.model, GraphedModel) == (not eager)
        prompts = [[5, 9, 11, 30], [7, 8, 100] * 9]
        return [r.logprobs for r in generate_all(engine, prompts, greedy(2))]

    bound = {"int8": 0.15, "int4": 1.0, "fp8": 0.4}[precision]
    for plain, quantised in zip(
        answers(module, eager=True), answers(module, eager=False), strict=True
    ):
        assert plain[0].logprob == pytest.approx(quantised[0].logprob, abs=bound)
        if plain[0].token_id == quantised[0].token_id:
            assert plain[1].logprob == pytest.approx(quantised[1].logprob, abs=bound)
