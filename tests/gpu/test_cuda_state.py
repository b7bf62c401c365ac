"""Models with recurrent states, with a cache of their own, and spread by a device map, on CUDA.

Each is built from its folder, as a server builds it, and compared with plain transformers.
"""

from typing import Any

import pytest
import torch
import transformers
from transformers.models.lfm2 import modeling_lfm2
from transformers.models.mamba2 import modeling_mamba2
from transformers.models.qwen3_5 import modeling_qwen3_5

from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.plain import PlainModel
from stonechat_models.backends.transformers.recurrent import RecurrentModel
from tests.gpu.built import build
from tests.gpu.test_cuda_engine import assert_near, prompts
from tests.models.engines import generate_all, greedy
from tests.models.tiny_models import save_tiny_model, tiny_model
from tests.models.tiny_tokenizers import save_byte_level

VOCAB_SIZE = 320
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}
"""In standard deviations of the logits."""


def build_family(tmp_path, family, **settings: Any):
    """Returns an engine and the text of the progress lines."""
    tokenizer_folder = save_byte_level(tmp_path / "tokenizer")
    folder = save_tiny_model(tmp_path / "tiny", family, tokenizer_folder, vocab_size=VOCAB_SIZE)
    sizes = {"max_num_seqs": 4, "max_batch_tokens": 64, "max_model_len": 200}
    return build(folder, **sizes, kv_cache_bytes=8 << 20, **settings)


def check(engine, family, dtype):
    """The reference has the weights that are served: rounding them moves logits more than all else
    in bfloat16, by 0.5 where it is 0.1 without."""
    reference = tiny_model(family, vocab_size=VOCAB_SIZE)
    for parameter in reference.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    results = generate_all(engine, prompts(), greedy(12, ignore_eos=True))
    assert [len(result.token_ids) for result in results] == [12] * len(results)
    assert_near(reference, results, TOLERANCE[dtype])
    return results


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen3_5_text", "lfm2", "falcon_h1", "mamba2"])
def test_recurrent_states(family, dtype, device, tmp_path):
    engine, progress = build_family(tmp_path, family, dtype=dtype)
    assert isinstance(engine.model, GraphedModel), progress
    assert isinstance(engine.model.model, RecurrentModel), progress
    assert {shape.seqs for shape in engine.model._graphs} == {1, 2, 4}, progress
    has_mixed = any(not shape.is_decode for shape in engine.model._graphs)
    assert has_mixed == (family != "falcon_h1"), progress
    assert (" Slot" in progress) == (family != "falcon_h1"), progress
    assert ("FusedAttention" in progress) == (family in ("qwen3_5_text", "lfm2")), progress
    check(engine, family, dtype)
    if engine.model.info.exact_chunks:  # the second time with a snapshot of the state
        assert check(engine, family, dtype)[-1].num_cached_tokens > 0


def layer_of(kind, dtype, device):
    """A recurrent layer in the sizes of a known model, with random weights."""
    if kind == "qwen3.5-4b":
        config = transformers.Qwen3_5TextConfig(
            hidden_size=2560,
            linear_num_value_heads=32,
            num_hidden_layers=1,
            layer_types=["linear_attention"],
        )
        module = modeling_qwen3_5.Qwen3_5GatedDeltaNet
    elif kind == "lfm2-1.2b":
        config = transformers.Lfm2Config(
            hidden_size=2048, conv_L_cache=3, num_hidden_layers=1, layer_types=["conv"]
        )
        module = modeling_lfm2.Lfm2ShortConv
    else:
        config = transformers.Mamba2Config(hidden_size=2048, num_heads=64, n_groups=1)
        module = modeling_mamba2.Mamba2Mixer
    torch.manual_seed(0)
    with device:
        return module(config, 0).to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["qwen3.5-4b", "lfm2-1.2b", "mamba2-1.3b"])
def test_kernels_of_recurrent_layers_of_known_sizes(kind, dtype, device):
    from stonechat_models.backends.transformers.fused.recognise_mixers import fused_mixer

    fused = fused_mixer(layer_of(kind, getattr(torch, dtype), device))
    assert fused is not None
    assert fused.decodes
    assert fused.packs_prompts


@pytest.mark.parametrize("family", ["bloom", "phimoe"])
def test_a_cache_of_its_own(family, device, tmp_path):
    engine, progress = build_family(tmp_path, family, dtype="float32")
    assert isinstance(engine.model, PlainModel), progress
    check(engine, family, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_on_the_host(dtype, device, tmp_path):
    """A device map may keep layers in the host's memory. They are computed on the device."""
    on_device = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb")
    device_map = {**dict.fromkeys((*on_device, "lm_head"), 0), "model.layers.1": "cpu"}
    engine, _ = build_family(tmp_path, "llama", dtype=dtype, device_map=device_map)
    layers = engine.model.module.model.layers
    assert [layer.mlp.up_proj.weight.device.type for layer in layers] == ["cuda", "meta"]
    assert engine.model.info.attention_backend == "triton"
    check(engine, "llama", dtype)


def test_a_device_map_of_one_device(device, tmp_path):
    engine, _ = build_family(tmp_path, "qwen3", dtype="float32", device_map="auto")
    assert {p.device.type for p in engine.model.module.parameters()} == {"cuda"}
    check(engine, "qwen3", "float32")
