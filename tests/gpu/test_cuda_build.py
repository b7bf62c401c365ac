"""From a model's folder to an engine on a CUDA device, as a server builds it."""

import re

import pytest
import torch

from stonechat_models.backends.quantization.device_support import (
    FP8_KV_CAPABILITY,
    refuse_weight_format,
)
from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.cuda.kernel_timing import GraphTimer
from stonechat_models.backends.transformers.verify import TOLERANCE
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from tests.gpu.built import build
from tests.models.engines import deviations, generate_all, greedy
from tests.models.tiny_models import save_tiny_model, tiny_model
from tests.models.tiny_tokenizers import save_byte_level

SIZES = {"vocab_size": 320, "num_attention_heads": 2, "num_key_value_heads": 1}
PROMPTS = [[40, 50, 60], list(range(100, 140)), [70]]
FEW_PROMPTS = [[40, 50, 60], list(range(100, 112)), [70]]
"""Triton's interpreter runs them too (`tests.models.fake_cuda`), and is slow."""


@pytest.fixture
def folder(tmp_path):
    """A tiny random model with a tiny tokenizer."""
    tokenizer_folder = save_byte_level(tmp_path / "tokenizer")
    return save_tiny_model(tmp_path / "tiny", "qwen3", tokenizer_folder, **SIZES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_optimisation_is_used_and_tokens_are_right(folder, device, dtype):
    engine, progress = build(folder, dtype=dtype, max_num_seqs=2, max_batch_tokens=8)
    assert "fused modules: 2 FusedAttention, 2 FusedDecoderLayer" in progress
    assert re.search(r"^captured \d+ CUDA graphs in", progress, re.MULTILINE)
    assert "without CUDA graphs" not in progress
    weight = engine.model.model.module.get_input_embeddings().weight
    if GraphTimer.works_on(weight.device):  # not on a stand-in that times nothing
        assert "own kernel for products of a few rows" in progress
        assert ("tiles of decode attention" in progress) is (dtype == "bfloat16")
    assert isinstance(engine.model, GraphedModel)
    assert engine.model.info.attention_backend == "triton"
    results = generate_all(engine, FEW_PROMPTS, greedy(3, ignore_eos=True))
    module = tiny_model("qwen3", **SIZES)
    for prompt, result in zip(FEW_PROMPTS, results, strict=True):
        assert len(result.token_ids) == 3
        errors = deviations(module, prompt, result)
        assert float(errors.max()) < TOLERANCE["logits"][getattr(torch, dtype)]
    assert engine.model._buffers.logits.dtype is getattr(torch, dtype)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantised_weights_and_an_fp8_cache(folder, device, precision):
    if torch.cuda.get_device_capability(device) < FP8_KV_CAPABILITY:
        pytest.skip("the device has no float8")
    try:
        refuse_weight_format(EngineConfig(model="x", quantize=precision), device)
    except UnsupportedModelError as error:
        pytest.skip(str(error))
    engine, progress = build(folder, quantize=precision, kv_cache_dtype="fp8")
    info = engine.model.info
    assert info.quantization.startswith(precision)
    assert (info.dtype, info.attention_backend) == ("bfloat16", "triton")
    assert "FusedAttention" in progress
    results = generate_all(engine, PROMPTS, greedy(6, ignore_eos=True))
    assert [len(result.token_ids) for result in results] == [6, 6, 6]
    assert all(-20 < entry.logprob <= 0 for result in results for entry in result.logprobs)
