"""Fused modules return the numbers of a model's own modules. Other modules are not replaced."""

import copy
import weakref
from collections import Counter

import pytest
import torch
import transformers
from torch import nn

pytest.importorskip("triton")

from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.attention.interface import ProbeContext
from stonechat_models.backends.transformers.attention.triton_backend import TritonBackend
from stonechat_models.backends.transformers.fused.attention import FusedAttention
from stonechat_models.backends.transformers.fused.layer import FusedDecoderLayer
from stonechat_models.backends.transformers.fused.linears import use_ways
from stonechat_models.backends.transformers.fused.modules import FusedRMSNorm, MergedMLP
from stonechat_models.backends.transformers.fused.moe.experts import FusedExperts
from stonechat_models.backends.transformers.fused.moe.mixture import FusedMixture
from stonechat_models.backends.transformers.fused.moe.router import FusedRouter
from stonechat_models.backends.transformers.fused.replace import fuse_modules
from stonechat_models.backends.transformers.fused.rotary_table import tabulate_rotary
from stonechat_models.backends.transformers.fused.row_products.few_rows import FewRowsTile
from stonechat_models.backends.transformers.fused.step_products import product_groups
from stonechat_models.backends.transformers.loading.quantize import quantize_module
from stonechat_models.backends.transformers.media_checks.images import image_case, with_images
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.packing_check import check_packing, packed_forward
from stonechat_models.errors import UnsupportedModelError
from tests.models.backends.transformers.attention.packed import packed_batch
from tests.models.engines import (
    CPU,
    generate_all,
    greedy,
    make_engine,
    model_info,
    reference_greedy,
)
from tests.models.launches import WAITS, counted_launches
from tests.models.tiny_models import COMMON, VOCAB_SIZE, tiny_model
from tests.models.vision_models import vision_config
from tests.nightly import nightly

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ONE_LAYER = {"num_hidden_layers": 1}
GRANITE = {"attention_multiplier": 0.2, "residual_multiplier": 0.3}
GLM = {
    "head_dim": 16,
    "use_qk_norm": True,
    "first_k_dense_replace": 0,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
BIASED = {"attention_bias": True, "mlp_bias": True}
needs_interpreter = pytest.mark.skipif(DEVICE == "cuda", reason="counts what the interpreter runs")


@torch.inference_mode()
def logits(module):
    """The logits of two packed sequences. `check_packing` must have set the attention function."""
    ids = torch.arange(9, device=DEVICE) * 23 % VOCAB_SIZE
    positions = torch.cat([torch.arange(5), torch.arange(4)]).to(DEVICE)
    return packed_forward(module, ids, positions, ProbeContext([0, 5, 9])).float()


def counts(norms=0, mlps=0, attentions=0, layers=0, mixtures=0, blocks=None):
    """The counts per kind. A mixture is a router and experts; most are whole blocks too."""
    kinds = (FusedRMSNorm, MergedMLP, FusedAttention, FusedDecoderLayer, FusedRouter, FusedExperts)
    blocks = mixtures if blocks is None else blocks
    numbers = (norms, mlps, attentions, layers, mixtures, mixtures, blocks)
    pairs = zip((*kinds, FusedMixture), numbers, strict=True)
    return Counter({kind.__name__: n for kind, n in pairs if n})


def packing_probe(module):
    return check_packing(module, torch.device(DEVICE), VOCAB_SIZE)


def with_random_norms(module):
    """The module on the device, with norms that are not all ones and biases that are not zero."""
    for name, parameter in module.named_parameters():
        if "norm" in name or "bias" in name or "sinks" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return module.to(DEVICE)


def from_config(name, **options):
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**COMMON, **options})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


# Norms: those of each layer, including q and k norms, and the final one. MLPs: only gated ones.
@pytest.mark.parametrize(
    ("family", "expected"),
    [
        pytest.param("mistral", counts(3, 1, 1, 1), marks=pytest.mark.nightly),
        pytest.param("qwen2", counts(3, 1, 1, 1), marks=pytest.mark.nightly),
        ("qwen3", counts(5, 1, 1, 1)),
        ("phi3", counts(3, 1, 1, 1)),
        pytest.param("mixtral", counts(3, 0, 1, 1, 1), marks=pytest.mark.nightly),
        pytest.param("qwen3_moe", counts(5, 0, 1, 1, 1), marks=pytest.mark.nightly),
        ("gpt_oss", counts(3, 0, 1, 1, 1)),
        pytest.param("gemma2", counts(9, 2, 2), marks=pytest.mark.nightly),
        ("gemma3", counts(19, 3, 3)),
        ("gpt_neox", counts()),
    ],
)
def test_families(family, expected):
    has_two_kinds = family.startswith("gemma")
    changes = {} if has_two_kinds else ONE_LAYER
    module = with_random_norms(tiny_model(family, **changes))
    probe = packing_probe(module)
    before = logits(module)
    assert fuse_modules(module) == expected
    torch.testing.assert_close(logits(module), before, rtol=1e-4, atol=1e-4)
    assert not fuse_modules(module)
    assert probe.shapes.keys() == set(range(module.config.num_hidden_layers))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("SmolLM3Config", {"no_rope_layers": [1, 0]}, counts(5, 2, 2, 2)),
        pytest.param(
            "GraniteConfig", ONE_LAYER | GRANITE, counts(3, 1, 1), marks=pytest.mark.nightly
        ),
        ("Glm4MoeConfig", ONE_LAYER | GLM, counts(5, 1, 1, 1, 1)),  # shares an MLP
        pytest.param(
            "LlamaConfig", ONE_LAYER | BIASED, counts(3, 1, 1, 1), marks=pytest.mark.nightly
        ),
        pytest.param(
            "GemmaConfig",
            ONE_LAYER | {"head_dim": 16},
            counts(3, 1, 1, 1),
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "Qwen2MoeConfig",
            ONE_LAYER | EXPERTS,
            counts(3, 1, 1, 1, 1, 0),
            marks=pytest.mark.nightly,
        ),  # shares an MLP with a gate
        ("ArceeConfig", ONE_LAYER, counts(3, 0, 1, 1)),  # its MLP has no gate
        pytest.param(
            "Exaone4Config",
            ONE_LAYER | {"layer_types": ["full_attention"]},
            counts(5, 1, 1),
            marks=pytest.mark.nightly,
        ),
        pytest.param("ApertusConfig", ONE_LAYER, counts(5, 0, 1), marks=pytest.mark.nightly),
        ("Starcoder2Config", ONE_LAYER, counts(0, 0, 1)),
        ("Olmo2Config", ONE_LAYER, counts(5, 1)),  # norms over all heads at once
        ("OlmoConfig", ONE_LAYER | {"clip_qkv": 1e-3}, counts(0, 1)),
        ("CohereConfig", ONE_LAYER, counts(0, 1)),  # rotates pairs of neighbours
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_families(name, options, expected):
    module = with_random_norms(from_config(name, **options))
    packing_probe(module)
    before = logits(module)
    assert fuse_modules(module) == expected
    torch.testing.assert_close(logits(module), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [*nightly(torch.float16), torch.bfloat16], ids=str)
def test_half_precision(dtype):
    module = with_random_norms(tiny_model("qwen3", num_hidden_layers=1)).to(dtype)
    packing_probe(module)
    before = logits(module)
    assert fuse_modules(module) == counts(5, 1, 1, 1)
    assert (logits(module) - before).abs().max() < 0.1 * before.std()


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        # Embeddings are added after several layers, and there are three rows of rotary positions.
        ("qwen3_vl", {"FusedDecoderLayer": 3, "RotaryTable": 0}),
        pytest.param(
            "qwen3_vl_moe", {"FusedDecoderLayer": 3, "FusedMixture": 3}, marks=pytest.mark.nightly
        ),
        pytest.param(
            "mistral3", {"FusedDecoderLayer": 2, "RotaryTable": 1}, marks=pytest.mark.nightly
        ),
        pytest.param("gemma3", {"FusedAttention": 3, "RotaryTable": 1}, marks=pytest.mark.nightly),
        pytest.param("qwen2_5_vl", {"MergedMLP": 2, "RotaryTable": 0}, marks=pytest.mark.nightly),
    ],
)
def test_steps_with_images(family, expected):
    """Steps of the fused model equal its own code's, as the check at load compares them."""
    model_class = transformers.AutoModelForImageTextToText
    module = model_class.from_config(vision_config(family)).eval().to(DEVICE)
    case = image_case(module)
    vocab_size = module.config.get_text_config().vocab_size
    probe = check_packing(module, torch.device(DEVICE), vocab_size)
    replaced = fuse_modules(module)
    replaced["RotaryTable"] = tabulate_rotary(module, 64)
    assert {name: replaced[name] for name in expected} == expected
    model = TransformersModel(module, model_info(), TritonBackend(8), probe=probe)
    info = with_images(model, case)
    assert info.images is not None, info.image_refusal


@pytest.mark.skipif(DEVICE == "cuda", reason="the engines of tests are on the CPU")
@pytest.mark.parametrize(
    ("family", "row_multiple"),
    [
        ("qwen3", 8),
        pytest.param("gemma3", 1, marks=pytest.mark.nightly),
        pytest.param("gpt_oss", 1, marks=pytest.mark.nightly),
    ],
)
def test_token_by_token(family, row_multiple):
    """A batch mixes prefill chunks with decoding. Steps are padded to a multiple of rows."""
    module = with_random_norms(tiny_model(family))
    prompts = [[5, 6, 7, 8, 9, 10, 11], [3], [9, 8, 7]]
    references = [reference_greedy(module, prompt, 3) for prompt in prompts]
    probe = packing_probe(module)
    assert fuse_modules(module)["FusedAttention"]
    engine = make_engine(
        module, BatchedBackend(), probe=probe, row_multiple=row_multiple, max_batch_tokens=6
    )
    results = generate_all(engine, prompts, greedy(3))
    assert [r.token_ids for r in results] == [token_ids for token_ids, _ in references]
    for result, (_, logprobs) in zip(results, references, strict=True):
        for row, entry in zip(logprobs, result.logprobs, strict=True):
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)


def test_merged_weights_are_held_once():
    module = tiny_model("qwen2").to(DEVICE)
    packing_probe(module)
    num_parameters = sum(p.numel() for p in module.parameters())
    layer = module.model.layers[1]
    parts = (layer.self_attn, layer.mlp)
    weights = [weakref.ref(p) for part in parts for p in part.parameters()]
    unmerged_addresses = {
        layer.self_attn.o_proj.weight.data_ptr(),
        layer.mlp.down_proj.weight.data_ptr(),
    }
    del layer, parts
    fuse_modules(module)
    live_addresses = {parameter.data_ptr() for ref in weights if (parameter := ref()) is not None}
    assert live_addresses == unmerged_addresses
    assert sum(p.numel() for p in module.parameters()) == num_parameters
    attention, mlp = module.model.layers[1].self_attn, module.model.layers[1].mlp
    assert type(attention.qkv_proj) is type(mlp.gate_up_proj) is nn.Linear
    assert attention.qkv_proj.bias is not None


def fuse_with(change):
    """How many modules of each kind are fused after `change` has modified the only layer."""
    module = tiny_model("llama", num_hidden_layers=1).to(DEVICE)
    change(module.model.layers[0])
    packing_probe(module)
    before = logits(module)
    replaced = fuse_modules(module)
    torch.testing.assert_close(logits(module), before, rtol=1e-4, atol=1e-4)
    return replaced


def test_attention_that_does_something_else_stays():
    def scale_far_queries(layer):
        original_forward = layer.self_attn.forward

        def forward(hidden_states, position_ids=None, **kwargs):
            far = 1.0 + (position_ids > 100).float().unsqueeze(-1).to(hidden_states.dtype)
            return original_forward(hidden_states * far, position_ids=position_ids, **kwargs)

        layer.self_attn.forward = forward

    assert fuse_with(scale_far_queries) == counts(3, 1)


@pytest.mark.parametrize("extra", [nn.Linear(4, 4), nn.ReLU()], ids=["weights", "function"])
def test_attention_with_a_part_that_is_not_known_stays(extra):
    assert fuse_with(lambda layer: layer.self_attn.add_module("extra", extra)) == counts(3, 1)


def test_attention_of_a_class_that_is_not_known_stays():
    def rename(layer):
        original_class = type(layer.self_attn)
        layer.self_attn.__class__ = type("OtherAttention", (original_class,), {})

    assert fuse_with(rename) == counts(3, 1)


def test_a_layer_that_does_something_else_stays():
    def double(layer):
        original_forward = layer.forward
        layer.forward = lambda *args, **kwargs: 2 * original_forward(*args, **kwargs)

    assert fuse_with(double) == counts(3, 1, 1)


def test_fused_attention_refuses_what_it_cannot_do():
    module = tiny_model("llama", num_hidden_layers=1).to(DEVICE)
    fuse_modules(module)
    with pytest.raises(UnsupportedModelError, match="packed"):
        module(input_ids=torch.tensor([[1, 2, 3]], device=DEVICE), use_cache=False)


def test_quantised_after_fusing():
    """A quantised product cannot add the residual: the norm adds it, or a separate operator."""
    module = tiny_model("llama", hidden_size=64, intermediate_size=96, num_hidden_layers=1)
    packing_probe(module)
    expected = copy.deepcopy(module)
    fuse_modules(module)
    assert quantize_module(module, "int8", None) == "int8"
    assert quantize_module(expected, "int8", None) == "int8"
    torch.testing.assert_close(logits(module), logits(expected), rtol=1e-3, atol=1e-3)


def launches_of_step(num_layers, is_fused, tile, monkeypatch, family="qwen3"):
    """The launches of a decode step of two sequences. `tile`: that of products of few rows."""
    module = tiny_model(family, num_hidden_layers=num_layers).to(torch.bfloat16)
    probe = check_packing(module, CPU, VOCAB_SIZE)
    if is_fused:
        fuse_modules(module)
        tabulate_rotary(module, 128)
    for group in product_groups(module) if tile is not None else ():
        for product in group:
            use_ways(product.linear, {2: tile})
    model = TransformersModel(module, model_info(), TritonBackend(16), probe=probe)
    model.allocate_kv_cache(16, 16)
    batch = packed_batch([(1, 5), (1, 7)], 16, 8, torch.Generator())
    batch.logits_index = torch.tensor([0, 1])
    with counted_launches(monkeypatch) as launches:
        model.forward(batch)
    assert not WAITS & launches.keys()
    return launches


def fused_layer(family, monkeypatch, tile=None):
    """The launches of a fused layer."""
    rest = {"rms_norm_kernel": 1, "linear": 1}
    rest["embedding"] = 2  # of tokens, and of positions
    rest["zeros"] = 1  # the attention's counter, made once
    rest["to"] = 1
    launches = launches_of_step(1, True, tile, monkeypatch, family)
    assert launches >= Counter(rest)
    return launches - Counter(rest)


@needs_interpreter
def test_launches_of_a_step(monkeypatch):
    one, two = (launches_of_step(n, False, None, monkeypatch) for n in (1, 2))
    assert (two - one).total() == 56
    assert fused_layer("qwen3", monkeypatch) == Counter(
        {
            "rms_norm_kernel": 2,
            "linear": 2,
            "rope_and_store_kernel": 1,
            "decode_kernel": 1,
            "addmm_": 2,
            "gated_kernel": 1,
        }
    )


@needs_interpreter
def test_launches_with_products_of_few_rows(monkeypatch):
    """Heads without norms are rotated in the product."""
    tile = FewRowsTile(64, 1)
    assert fused_layer("qwen3", monkeypatch, tile) == Counter(
        {"few_rows_kernel": 4, "rope_and_store_kernel": 1, "decode_kernel": 1}
    )
    assert fused_layer("llama", monkeypatch, tile) == Counter(
        {"few_rows_qkv_kernel": 1, "decode_kernel": 1, "few_rows_kernel": 3}
    )


@needs_interpreter
def test_launches_of_a_mixture(monkeypatch):
    assert fused_layer("qwen3_moe", monkeypatch) == Counter(
        {
            "rms_norm_kernel": 2,
            "linear": 2,  # one is the router's
            "rope_and_store_kernel": 1,
            "decode_kernel": 1,
            "addmm_": 1,
            "router_kernel": 1,
            "sort_pairs_kernel": 1,
            "expert_product_kernel": 2,
            "weighted_sum_kernel": 1,
        }
    )


def test_parts_that_compute_something_else_stay():
    class OtherRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))
            self.eps = 1e-6

        def forward(self, x):
            return 3 * self.weight * x / x.pow(2).mean(-1, keepdim=True).sqrt()

    class ReluMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(8, 16), nn.Linear(8, 16)
            self.down_proj = nn.Linear(16, 8)

        def forward(self, x):
            return self.down_proj(nn.functional.relu(self.gate_proj(x)) * self.up_proj(x))

    module = nn.Sequential(OtherRMSNorm(), ReluMLP()).to(DEVICE)
    assert fuse_modules(module) == counts()


def test_a_bias_is_merged_too():
    class BiasedMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(8, 1030), nn.Linear(8, 1030)
            self.down_proj = nn.Linear(1030, 8)

        def forward(self, x):
            return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))

    module = nn.Sequential(BiasedMLP()).to(DEVICE)
    x = torch.randn(2, 3, 8, device=DEVICE)
    expected = module(x)
    assert fuse_modules(module) == counts(mlps=1)
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
