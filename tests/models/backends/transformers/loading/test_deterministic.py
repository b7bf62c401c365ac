"""In deterministic mode, float models return the same bits however their rows are batched."""

import pytest
import torch
from torch import nn

from stonechat_models.backends.transformers.attention.row import RowBackend
from stonechat_models.backends.transformers.loading.deterministic import (
    ROWS,
    TiledLinear,
    make_deterministic,
)
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.types import SamplingParams
from tests.models.engines import generate_all, make_engine
from tests.models.tiny_models import tiny_model
from tests.nightly import nightly

PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=8, top_logprobs=4)
PROMPTS = [[5 + i] * (2 * i + 1) for i in range(0, 9, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(576, 192), (96, 1000), (33, 7)])
def test_tiled_linear_has_the_same_bits_in_any_batch(dtype, shape):
    torch.manual_seed(0)
    linear = nn.Linear(*shape, bias=True).to(dtype)
    tiled = TiledLinear(linear)
    rows = torch.randn(75, shape[0]).to(dtype)
    with torch.no_grad():
        whole = tiled(rows)
        torch.testing.assert_close(whole, linear(rows), atol=2e-2, rtol=2e-2)
        for start, end in [(0, 1), (3, 40), (74, 75), (10, 75)]:
            assert torch.equal(tiled(rows[start:end]), whole[start:end])


@pytest.fixture(scope="module", params=["gemma2", *nightly("gpt_neox", "llama", "qwen3")])
def module(request):
    model = tiny_model(request.param)
    make_deterministic(model)
    return model


def engine_of(module, **limits):
    return make_engine(module, RowBackend(), row_multiple=ROWS, **limits)


def test_same_bits_however_scheduled(module):
    alone = [generate_all(engine_of(module), [prompt], PARAMS)[0] for prompt in PROMPTS]
    expected = [(r.token_ids, r.logprobs) for r in alone]
    for limits in (
        {},
        {"max_batch_tokens": 6, "prefix_caching": False},
        {"num_blocks": 14, "max_model_len": 40, "prefix_caching": False},
    ):
        engine = engine_of(module, **limits)
        results = generate_all(engine, PROMPTS, PARAMS)
        assert [(r.token_ids, r.logprobs) for r in results] == expected, limits
    engine = engine_of(module)
    generate_all(engine, PROMPTS, PARAMS)
    again = generate_all(engine, PROMPTS, PARAMS)
    assert sum(r.num_cached_tokens for r in again) > 0
    assert [(r.token_ids, r.logprobs) for r in again] == expected


def test_experts_are_refused():
    with pytest.raises(UnsupportedModelError, match="deterministically"):
        make_deterministic(tiny_model("mixtral"))
