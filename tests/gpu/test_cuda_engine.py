"""An engine on a CUDA device: kernels, graphs, memory and recovery, against plain transformers."""

from dataclasses import replace

import pytest
import torch

from stonechat_models.backends.quantization.device_support import FP8_KV_CAPABILITY
from stonechat_models.backends.transformers.attention.choose import (
    choose_attention,
    why_no_flashinfer,
)
from stonechat_models.backends.transformers.cuda_graphs import GraphedModel
from stonechat_models.backends.transformers.fused.replace import fuse_modules
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.packing_check import check_packing
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.runtime.build import assemble_engine
from tests.models.engines import generate_all, greedy, model_info
from tests.models.tiny_models import VOCAB_SIZE, tiny_model

PROMPT_LENS = [1, 30, 9, 100]


def build(
    module,
    device,
    *,
    fuse=True,
    dtype="float32",
    progress=lambda _: None,
    kv_dtype=None,
    **settings,
):
    """Build an engine from `module` as `build.py` does. Changes `module`."""
    backend = choose_attention("auto", device)
    probe = check_packing(module, device, module.config.vocab_size)
    if fuse:
        fuse_modules(module)
    config = EngineConfig(
        model="tiny",
        **{"max_num_seqs": 6, "max_batch_tokens": 64, "kv_cache_bytes": 8 << 20, **settings},
    )
    info = model_info(device=str(device), dtype=dtype)
    model = TransformersModel(module, info, backend, probe=probe, kv_dtype=kv_dtype)
    model.set_attention(choose_attention("auto", device, model.attention_parity_check, progress))
    return assemble_engine(
        model,
        config,
        device,
        max_model_len=200,
        eos_token_ids=frozenset(),
        progress=progress,
    )


def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in PROMPT_LENS]


@torch.inference_mode()
def reference(module, prompt, num_tokens):
    module.set_attn_implementation("eager")
    token_ids = list(prompt)
    for _ in range(num_tokens):
        ids = torch.tensor([token_ids], device=module.device)
        token_ids.append(int(module(input_ids=ids, use_cache=False).logits[0, -1].argmax()))
    return token_ids[len(prompt) :]


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt_oss", "qwen3_moe"])
def test_tokens_are_those_of_plain_transformers(family, eager, device):
    module = tiny_model(family).to(device)
    expected = [reference(module, prompt, 12) for prompt in prompts()]
    engine = build(module, device, eager=eager)
    assert isinstance(engine.model, GraphedModel) is not eager
    if not eager:
        assert engine.model._graphs.keys() == {1, 2, 4, 6}
    results = generate_all(engine, prompts(), greedy(12))
    assert [r.token_ids for r in results] == expected


def test_the_kv_cache_uses_what_is_free_after_a_step(device):
    engine = build(tiny_model("llama").to(device), device, kv_cache_bytes=None)
    info = engine.model.info
    assert info.num_blocks * info.block_size >= 6 * 200 - info.block_size


def test_a_cache_that_does_not_fit_is_refused_with_numbers(device):
    with pytest.raises(ModelLoadError, match=r"[\d.]+ [MG]B"):
        build(tiny_model("llama").to(device), device, kv_cache_bytes=1 << 50)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
def test_out_of_memory_ends_only_the_request_that_needs_it(eager, device):
    engine = build(tiny_model("llama").to(device), device, eager=eager)
    forward = engine.model.forward

    def forward_short_on_memory(batch):
        if batch.num_tokens > 40:
            torch.empty(1 << 46, dtype=torch.uint8, device=device)
        return forward(batch)

    engine.model.forward = forward_short_on_memory
    results = generate_all(engine, prompts(), greedy(4))
    assert [r.finish_reason for r in results] == ["length", "length", "length", "error"]
    assert generate_all(engine, prompts()[:1], greedy(4))[0].finish_reason == "length"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "qwen3_moe"])
@pytest.mark.parametrize("name", ["flashinfer", "triton", "batched", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_attention_backends_pass_their_parity_check(name, family, dtype, device):
    if name == "flashinfer" and (reason := why_no_flashinfer(device)) is not None:
        pytest.skip(reason)
    module = tiny_model(family, head_dim=64).to(device)
    info = model_info(device=str(device))
    model = TransformersModel(module, info, choose_attention("sdpa", device))
    for kv_dtype in (dtype, torch.bfloat16):
        parity_check = replace(model.attention_parity_check, dtype=dtype, kv_dtype=kv_dtype)
        assert choose_attention(name, device, parity_check).name == name


def test_tokens_are_the_same_with_and_without_overlap(device):
    """With overlap, the next step is launched before the previous step's tokens are read."""

    def answers(overlap):
        engine = build(tiny_model("llama").to(device), device, overlap=overlap)
        return [r.token_ids for r in generate_all(engine, prompts(), greedy(24))]

    assert answers(True) == answers(False)


def test_a_kv_cache_in_fp8(device):
    if torch.cuda.get_device_capability(device) < FP8_KV_CAPABILITY:
        pytest.skip("the device does not convert float8")
    wide, narrow = (
        build(
            tiny_model("llama").to(device, torch.bfloat16),
            device,
            dtype="bfloat16",
            kv_dtype=kv_dtype,
        )
        for kv_dtype in (None, torch.float8_e4m3fn)
    )
    wide_info, narrow_info = wide.model.info, narrow.model.info
    assert narrow_info.kv_bytes_per_token * 2 == wide_info.kv_bytes_per_token
    assert narrow_info.attention_backend in ("triton", "flashinfer")
    expected, actual = (generate_all(engine, prompts(), greedy(1)) for engine in (wide, narrow))
    for a, b in zip(expected, actual, strict=True):
        assert a.logprobs[0].logprob == pytest.approx(b.logprobs[0].logprob, abs=0.7)
