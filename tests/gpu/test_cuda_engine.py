"""An engine on a CUDA device: kernels, graphs, memory and recovery, against plain transformers."""

import pytest
import torch

from stonechat_models.build import assemble_engine
from stonechat_models.config import EngineConfig
from stonechat_models.cuda_graphs import GraphedModel
from stonechat_models.errors import ModelLoadError
from stonechat_models.transformers_model import TransformersModel
from tests.models.engines import generate_all, greedy, model_info
from tests.models.tiny_models import VOCAB_SIZE, tiny_model

PROMPT_LENS = [1, 30, 9, 100]


def build(module, device, **settings):
    from stonechat_models.attention.choose import choose_attention

    backend = choose_attention("auto", device)
    config = EngineConfig(
        model="tiny",
        **{"max_num_seqs": 6, "max_batch_tokens": 64, "kv_cache_bytes": 8 << 20, **settings},
    )
    return assemble_engine(
        TransformersModel(module, model_info(device=str(device)), backend),
        config,
        device,
        max_model_len=200,
        eos_token_ids=frozenset(),
        progress=lambda _: None,
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


def test_the_kv_cache_takes_what_is_free_after_a_step(device):
    engine = build(tiny_model("llama").to(device), device, kv_cache_bytes=None)
    info = engine.model.info
    assert info.num_blocks * info.block_size >= 6 * 200 - info.block_size


def test_a_cache_that_does_not_fit_is_refused_with_numbers(device):
    with pytest.raises(ModelLoadError, match="MiB"):
        build(tiny_model("llama").to(device), device, kv_cache_bytes=1 << 50)


def test_out_of_memory_ends_only_the_request_that_needs_it(device):
    engine = build(tiny_model("llama").to(device), device, eager=True)
    forward = engine.model.forward

    def forward_short_on_memory(batch):
        if batch.num_tokens > 40:
            torch.empty(1 << 46, dtype=torch.uint8, device=device)
        return forward(batch)

    engine.model.forward = forward_short_on_memory
    results = generate_all(engine, prompts(), greedy(4))
    assert [r.finish_reason for r in results] == ["length", "length", "length", "error"]
