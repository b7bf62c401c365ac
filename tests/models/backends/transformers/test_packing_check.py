"""What the checks at load refuse, and what the packing check records."""

import pytest
import torch
import transformers

from stonechat_models.backends.transformers.attention import interface
from stonechat_models.backends.transformers.kv_cache import KVCache, LayerKVShape
from stonechat_models.backends.transformers.packing_check import (
    check_packing,
    check_window,
    probe_layers,
    small_copy,
)
from stonechat_models.backends.transformers.verify import random_prompts
from stonechat_models.errors import UnsupportedModelError
from tests.models.tiny_models import COMMON, VOCAB_SIZE, tiny_model
from tests.nightly import nightly

CPU = torch.device("cpu")


def from_config(config):
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    "config",
    [
        transformers.BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4),
        transformers.MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2),
    ],
    ids=["bloom", "mamba"],
)
def test_models_without_the_attention_function_are_refused(config):
    with pytest.raises(UnsupportedModelError, match="never calls"):
        check_packing(from_config(config), CPU, VOCAB_SIZE)


def test_state_outside_attention_is_noticed():
    model = tiny_model("llama")

    class Leaky(torch.nn.Module):
        """Mixes each token with the one before it, even if that is in another sequence."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x + 0.5 * torch.roll(x, 1, dims=1))

    model.model.layers[0].mlp = Leaky(model.model.layers[0].mlp)
    with pytest.raises(UnsupportedModelError, match="other logits"):
        check_packing(model, CPU, VOCAB_SIZE)


def test_a_window_that_only_a_mask_holds_is_noticed():
    with pytest.raises(UnsupportedModelError, match="only a mask"):
        check_packing(tiny_model("phimoe"), CPU, VOCAB_SIZE)
    check_packing(tiny_model("phimoe", sliding_window=256), CPU, VOCAB_SIZE)  # the context's length


def llama4(**changes):
    return tiny_model("llama4_text", **changes)


def test_the_probe_records_the_chunks_that_the_model_has():
    model = llama4(attention_chunk_size=8192)
    probe = check_packing(model, CPU, VOCAB_SIZE)
    assert {kind.spec.chunk_size for kind in probe.kinds} == {8192, None}
    assert model.config.attention_chunk_size == 8192
    assert {layer.self_attn.floor_scale for layer in model.model.layers} == {7}


@pytest.mark.parametrize("fault", ["chunk_size", "rescaled"])
def test_a_wrong_chunk_or_scale_is_noticed(fault, monkeypatch):
    """The check makes both short, however long they are."""
    wrong = {"chunk_size": lambda module: None, "rescaled": lambda query, *_: query}[fault]
    monkeypatch.setattr(interface, fault, wrong)
    with pytest.raises(UnsupportedModelError, match=r"other logits|in the mask alone"):
        check_packing(llama4(attention_chunk_size=8192, floor_scale=8192), CPU, VOCAB_SIZE)


def test_chunks_that_only_a_mask_holds_are_noticed(monkeypatch):
    model = llama4()
    probe, _ = probe_layers(model, random_prompts([3], VOCAB_SIZE))
    check_window(model, probe)
    monkeypatch.setattr(interface, "chunk_size", lambda module: None)
    probe, _ = probe_layers(model, random_prompts([3], VOCAB_SIZE))
    with pytest.raises(
        UnsupportedModelError, match="chunks of its attention are in the mask alone"
    ):
        check_window(model, probe)


def test_the_probe_records_what_layers_keep():
    probe = check_packing(tiny_model("gemma3"), CPU, VOCAB_SIZE)
    assert probe.shapes == {i: LayerKVShape(2, 16, 16) for i in range(3)}


def test_weights_that_are_not_finite_are_refused():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(UnsupportedModelError, match="not finite"):
        check_packing(model, CPU, VOCAB_SIZE)


def test_block_copies_read_every_source_first():
    cache = KVCache(
        {0: LayerKVShape(1, 1, 1)},
        num_blocks=3,
        block_size=2,
        dtype=torch.float32,
        devices={0: CPU},
    )
    cache.keys[0][:, 0, 0] = torch.arange(6)
    cache.copy_blocks([(0, 1), (1, 2)])
    assert cache.keys[0].flatten().tolist() == [0, 1, 0, 1, 2, 3]


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss", "gemma2"])
@pytest.mark.parametrize("seed", [0, *nightly(1, 2, 3)])
def test_rounding_in_half_precision_is_not_refused(family, seed):
    model = tiny_model(family, seed, vocab_size=4096).to(torch.bfloat16)
    check_packing(model, CPU, 4096)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_short_convolution_is_noticed(dtype):
    """It mixes a packed sequence's first tokens with another sequence's last ones."""
    config = transformers.Lfm2Config(
        **{**COMMON, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
    )
    model = from_config(config)
    if dtype is torch.bfloat16:  # rounding would hide the small effect of new weights
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8.0)
    with pytest.raises(UnsupportedModelError, match="other logits"):
        check_packing(model.to(dtype), CPU, VOCAB_SIZE)


class Flip(torch.nn.Module):
    """Is off at one position of a packed row, as a router is that chooses another expert."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        y = self.inner(x)
        if x.shape[1] > 7:  # a packed row is longer than each sequence alone
            y[:, 3] += 100.0 * torch.randn(y.shape[-1], generator=torch.Generator().manual_seed(0))
        return y


class FlippingLlama(transformers.LlamaForCausalLM):
    """A model whose every copy is off, whatever its dtype."""

    def __init__(self, config):
        super().__init__(config)
        self.model.layers[-1].mlp = Flip(self.model.layers[-1].mlp)


class OddLlama(FlippingLlama):
    """A model that cannot be built from its config alone."""

    def __init__(self, config, other):
        super().__init__(config)


def llama_of(model_class, *arguments):
    torch.manual_seed(0)
    return model_class(transformers.LlamaConfig(**COMMON), *arguments).eval()


def test_a_single_position_in_half_precision_is_checked_again_in_a_float_copy():
    model = tiny_model("llama")
    model.model.layers[-1].mlp = Flip(model.model.layers[-1].mlp)
    with pytest.raises(UnsupportedModelError, match="other logits"):
        check_packing(model, CPU, VOCAB_SIZE)
    probe = check_packing(model.to(torch.bfloat16), CPU, VOCAB_SIZE)  # its copies are right
    assert probe.shapes == {i: LayerKVShape(2, 8, 8) for i in range(2)}
    with pytest.raises(UnsupportedModelError, match="other logits"):
        check_packing(llama_of(FlippingLlama).to(torch.bfloat16), CPU, VOCAB_SIZE)


def test_a_model_that_cannot_be_copied_is_refused_when_a_copy_is_needed():
    model = llama_of(OddLlama, None).to(torch.bfloat16)
    with pytest.raises(UnsupportedModelError, match="cannot copy the model"):
        check_packing(model, CPU, VOCAB_SIZE)


def test_a_copy_has_each_kind_of_layer_once():
    types = ["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 2
    model = tiny_model("gemma3", num_hidden_layers=6, layer_types=types).to(torch.bfloat16)
    copied = small_copy(model)
    assert type(copied) is type(model)
    assert copied.config.layer_types == types[:4]
    assert len(copied.model.layers) == 4
    assert {parameter.dtype for parameter in copied.parameters()} == {torch.float32}
    assert copied.get_input_embeddings().num_embeddings == 256
    assert model.config.num_hidden_layers == 6
    assert len(small_copy(tiny_model("llama", num_hidden_layers=5)).model.layers) == 2
    assert len(small_copy(tiny_model("llama", num_hidden_layers=1)).model.layers) == 1


def test_a_forward_pass_that_fails_is_refused_with_its_reason():
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("needs a kernel")

    model = tiny_model("llama")
    model.model.layers[0].mlp = Broken()
    with pytest.raises(UnsupportedModelError, match="forward pass fails: needs a kernel"):
        check_packing(model, CPU, VOCAB_SIZE)
