"""From a model's folder to an engine on a CUDA device, as a server builds it."""

import pytest
import torch

from stonechat_models.backends.quantization.device_support import FP8_KV_CAPABILITY
from stonechat_models.backends.transformers.cuda_graphs import GraphedModel
from stonechat_models.config import EngineConfig
from stonechat_models.runtime.build import build_engine
from tests.models.engines import generate_all, greedy, reference_greedy
from tests.models.tiny_models import save_tiny_model, tiny_model

VOCAB_SIZE = 49152
PROMPTS = [[400, 500, 600], list(range(1000, 1040)), [7000]]


@pytest.fixture
def folder(default_model_files, tmp_path):
    """A tiny random model with a real tokenizer."""
    tokenizer_folder = default_model_files.folder
    return save_tiny_model(tmp_path / "tiny", "qwen3", tokenizer_folder, vocab_size=VOCAB_SIZE)


def build(folder, **settings):
    """Returns an engine and the text of the progress lines."""
    lines: list[str] = []
    config = EngineConfig(
        model=str(folder),
        device="cuda",
        max_num_seqs=3,
        max_batch_tokens=32,
        max_model_len=64,
        kv_cache_bytes=4 << 20,
        **settings,
    )
    engine, _ = build_engine(config, lines.append)
    return engine, "\n".join(lines)


def test_every_optimisation_is_used_and_tokens_are_right(folder, device):
    module = tiny_model("qwen3", vocab_size=VOCAB_SIZE)
    expected = [reference_greedy(module, prompt, 6)[0] for prompt in PROMPTS]
    engine, progress = build(folder, dtype="float32")
    assert "fused modules: 2 FusedAttention, 2 FusedDecoderLayer" in progress
    assert "captured 3 CUDA graphs" in progress
    assert isinstance(engine.model, GraphedModel)
    assert engine.model.info.attention_backend == "triton"
    results = generate_all(engine, PROMPTS, greedy(6, ignore_eos=True))
    assert [result.token_ids for result in results] == expected


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantised_weights_and_an_fp8_cache(folder, device, precision):
    if torch.cuda.get_device_capability(device) < FP8_KV_CAPABILITY:
        pytest.skip("the device has no float8")
    engine, progress = build(folder, quantize=precision, kv_cache_dtype="fp8")
    info = engine.model.info
    assert info.quantization.startswith(precision)
    assert (info.dtype, info.attention_backend) == ("bfloat16", "triton")
    assert "FusedAttention" in progress
    results = generate_all(engine, PROMPTS, greedy(6, ignore_eos=True))
    assert [len(result.token_ids) for result in results] == [6, 6, 6]
    assert all(-20 < entry.logprob <= 0 for result in results for entry in result.logprobs)
