"""An engine on a CUDA device: kernels, graphs, memory and recovery, against plain transformers."""

import copy
from dataclasses import replace

import pytest
import torch

from stonechat_models.backends.quantization.device_support import (
    FP8_KV_CAPABILITY,
)
from stonechat_models.backends.transformers.attention.choose import (
    choose_attention,
)
from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.fused.replace import fuse_modules
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.packing_check import check_packing
from stonechat_models.backends.transformers.verify import TOLERANCE
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.runtime.assemble import assemble_engine
from tests.models.engines import deviations, generate_all, greedy, model_info
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


def tiny_pair(family, device, dtype, **changes):
    """Return a tiny model on the device, and one of the same numbers in float32 on the CPU."""
    reference = tiny_model(family, **changes)
    for parameter in reference.parameters():
        parameter.data = parameter.data.to(dtype).float()
    module = copy.deepcopy(reference).to(device)
    for parameter in module.parameters():  # the buffers stay float32, as after loading
        parameter.data = parameter.data.to(dtype)
    return module, reference


def assert_near(reference, results, tolerance):
    """Compare results with plain transformers, within `tolerance` standard deviations of logits.

    The largest error counts, but not in a mixture of experts, whose routers have near ties.
    """
    pairs = zip(prompts(), results, strict=True)
    errors = torch.cat([deviations(reference, prompt, result) for prompt, result in pairs])
    assert float(errors.median()) < tolerance / 3
    if not any("experts" in name for name, _ in reference.named_modules()):
        assert float(errors.max()) < 2 * tolerance


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt_oss", "qwen3_moe"])
def test_answers_are_those_of_plain_transformers(family, dtype, eager, device):
    module, reference = tiny_pair(family, device, dtype)
    lines = []
    name = str(dtype).removeprefix("torch.")
    engine = build(module, device, eager=eager, dtype=name, progress=lines.append)
    assert isinstance(engine.model, GraphedModel) is not eager, lines
    if not eager:
        assert {s.seqs for s in engine.model._graphs if s.is_decode} == {1, 2, 4, 6}, lines
    results = generate_all(engine, prompts(), greedy(12))
    assert [len(result.token_ids) for result in results] == [12] * len(PROMPT_LENS)
    assert_near(reference, results, TOLERANCE["logits"][dtype])


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


def attention_cases():
    """Backends and dtypes. Triton compiles large kernels for all but bfloat16."""
    for name in ("triton", "batched", "sdpa"):
        for dtype in ("bfloat16", "float16", "float32"):
            is_slow = name == "triton" and dtype != "bfloat16"
            marks = [pytest.mark.slow_compile] if is_slow else []
            yield pytest.param(name, getattr(torch, dtype), id=f"{name}-{dtype}", marks=marks)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "qwen3_moe"])
@pytest.mark.parametrize(("name", "dtype"), list(attention_cases()))
def test_attention_backends_pass_their_parity_check(name, family, dtype, device):
    module = tiny_model(family, head_dim=64).to(device)
    info = model_info(device=str(device))
    model = TransformersModel(module, info, choose_attention("sdpa", device))
    for kv_dtype in {dtype, torch.bfloat16}:
        parity_check = replace(model.attention_parity_check, dtype=dtype, kv_dtype=kv_dtype)
        assert choose_attention(name, device, parity_check).name == name


def test_tokens_are_the_same_with_and_without_overlap(device):
    """With overlap, the next step is launched before the previous step's tokens are read."""

    def answers(overlap):
        engine = build(tiny_model("llama").to(device), device, overlap=overlap)
        results = generate_all(engine, prompts(), greedy(24))
        assert [len(r.token_ids) for r in results] == [24] * len(results)
        return [r.token_ids for r in results]

    assert answers(True) == answers(False)


def test_a_kv_cache_in_fp8(device):
    if torch.cuda.get_device_capability(device) < FP8_KV_CAPABILITY:
        pytest.skip("the device does not convert float8")
    infos = []
    for kv_dtype, tolerance in ((None, 0.25), (torch.float8_e4m3fn, 0.5)):
        module, reference = tiny_pair("qwen3", device, torch.bfloat16)
        engine = build(module, device, dtype="bfloat16", kv_dtype=kv_dtype)
        infos.append(engine.model.info)
        assert_near(reference, generate_all(engine, prompts(), greedy(12)), tolerance)
    wide, narrow = infos
    assert narrow.kv_bytes_per_token * 2 == wide.kv_bytes_per_token
    assert narrow.attention_backend == "triton"
