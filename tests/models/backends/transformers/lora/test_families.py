"""Adapters beside models of other families, fused parts and quantised layers."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stonechat_models.backends.transformers import step_check
from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.loading.quantize import quantize_module
from stonechat_models.backends.transformers.lora.install import refuse_other_layers
from stonechat_models.backends.transformers.lora.serve import serve_adapters
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.packing_check import check_packing, probe_layers
from stonechat_models.backends.transformers.verify import random_prompts
from stonechat_models.checkpoint.adapter.files import read_adapter
from tests.models.engines import CPU, add, deviations, greedy, make_engine, model_info, run
from tests.models.every_family import tiny_model as tiny_model_of_type
from tests.models.tiny_adapters import projections, write_adapter
from tests.models.tiny_loras import tiny_lora
from tests.models.tiny_models import VOCAB_SIZE, tiny_model
from tests.nightly import nightly

QKVO = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
PROMPTS = [[5, 9, 3, 17, 40, 8], [60, 61, 62], [5, 9, 3, 17, 41, 12, 13]]


def compare(engine, references, tolerance=1e-4) -> None:
    """Run prompts of all adapters together, and compare them with the modules in `references`."""
    requests = [(prompt, name) for prompt in PROMPTS for name in references]
    for i, (prompt, name) in enumerate(requests):
        add(engine, str(i), prompt, greedy(6), adapter=name)
    results = run(engine)
    for i, (prompt, name) in enumerate(requests):
        assert results[str(i), 0].error is None
        assert deviations(references[name], prompt, results[str(i), 0]).max() < tolerance


FAMILIES = {
    "qwen2": projections(2, [*QKVO, *MLP]),
    "gemma3": [*projections(3, QKVO), "lm_head"],
    "qwen3_moe": projections(2, QKVO),
    "lfm2": [*projections(1, ["conv.in_proj"]), "model.layers.1.self_attn.v_proj", "lm_head"],
    "gemma2": projections(2, [*QKVO, *MLP]),
    "mixtral": projections(2, QKVO),
    "gpt_oss": projections(2, QKVO),
    "phi3": projections(2, ["self_attn.qkv_proj", "mlp.gate_up_proj"]),
    "gpt_neox": [f"gpt_neox.layers.{i}.attention.query_key_value" for i in range(2)],
    "gpt2": [f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")],
    "qwen2_moe": projections(2, ["mlp.shared_expert.up_proj"]),
    "qwen3_next": projections(1, ["linear_attn.in_proj_qkvz", "linear_attn.out_proj"]),
}
"""The layers that an adapter changes. Gemma's head is its embedding too, which stays as it is."""
COMMON = ["qwen2", "gemma3", "qwen3_moe", "lfm2"]


@pytest.mark.parametrize("family", [*COMMON, *nightly(*[f for f in FAMILIES if f not in COMMON])])
def test_families(family: str, tmp_path: Path) -> None:
    make = tiny_model_of_type if family == "gpt2" else tiny_model
    module, names = make(family), FAMILIES[family]
    loras = [
        tiny_lora(tmp_path / "a", module, names),
        tiny_lora(tmp_path / "b", module, names[1:], seed=2),
    ]
    adapters = [lora.adapter for lora in loras]
    refuse_other_layers(module, adapters, family)
    engine = make_engine(copy.deepcopy(module), adapters=adapters)
    compare(engine, {"": module} | {lora.name: lora.merged for lora in loras})


@pytest.mark.nightly
def test_beside_fused_recurrent_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from stonechat_models.backends.transformers.fused.replace import fuse_modules

    monkeypatch.setattr(step_check, "PROMPT_LENGTHS", (9, 3))  # interpreted kernels are slow
    monkeypatch.setattr(step_check, "PARTS", (4, 1, 3, 1))
    module = tiny_model("lfm2")
    names = ["conv.in_proj", "conv.out_proj", "feed_forward.w1", "feed_forward.w3"]
    names = [*projections(1, names), "model.layers.2.feed_forward.w2"]
    loras = [
        tiny_lora(tmp_path / "a", module, names),
        tiny_lora(tmp_path / "b", module, names[1:], seed=2),
    ]
    fused = copy.deepcopy(module)
    assert fuse_modules(fused)["FusedHybridLayer"] == 3
    engine = make_engine(fused, adapters=[lora.adapter for lora in loras])
    compare(engine, {"": module} | {lora.name: lora.merged for lora in loras})


def test_no_states_are_shared_between_adapters(tmp_path: Path) -> None:
    """A model with recurrent states keeps those of prompts, by their tokens and their adapter."""
    module, prompt = tiny_model("lfm2"), [*range(20, 41)]
    lora = tiny_lora(tmp_path / "a", module, FAMILIES["lfm2"])
    engine = make_engine(copy.deepcopy(module), adapters=[lora.adapter])
    for name, reference in (("", module), ("a", lora.merged)):
        for num_cached in (0, 20):
            add(engine, "x", prompt, greedy(4), adapter=name)
            result = run(engine)["x", 0]
            assert result.num_cached_tokens == num_cached
            assert deviations(reference, prompt, result).max() < 1e-4


FUSED = [
    ("llama", ["self_attn.q_proj", "self_attn.k_proj", *MLP]),
    *nightly(
        ("llama", QKVO),
        ("qwen2", ["self_attn.v_proj", "mlp.up_proj"]),
        ("phi3", ["self_attn.qkv_proj", "mlp.gate_up_proj"]),
        ("qwen3_moe", QKVO),
    ),
]


@pytest.mark.parametrize("case", FUSED)
@torch.inference_mode()
def test_layers_that_are_fused(case: tuple[str, list[str]], tmp_path: Path) -> None:
    """An adapter of the query changes only its part of the one product for query, key and value."""
    pytest.importorskip("triton")
    from stonechat_models.backends.transformers.fused.replace import fuse_modules

    module = tiny_model(case[0], num_hidden_layers=1)
    lora = tiny_lora(tmp_path / "a", module, projections(1, case[1]))
    fused = copy.deepcopy(module)
    probe = check_packing(fused, CPU, VOCAB_SIZE)
    assert fuse_modules(fused)["FusedAttention"] == 1
    model = TransformersModel(fused, model_info(), BatchedBackend(), probe=probe)
    serve_adapters(model, [lora.adapter], torch.float32)
    batch = replace(random_prompts([3, 2], VOCAB_SIZE), adapters=[0, -1])
    assert model.adapter_rows is not None
    model.adapter_rows.set(batch, head_reads_all=True)
    _, actual = probe_layers(fused, batch)
    for reference, rows in ((lora.merged, slice(3)), (module, slice(3, 5))):
        _, expected = probe_layers(reference, batch)
        torch.testing.assert_close(actual[rows], expected[rows], atol=1e-4, rtol=1e-4)


class Changed(torch.nn.Module):
    """A layer of any kind, plus a product with what numpy makes of an adapter."""

    def __init__(self, layer: torch.nn.Module, change: np.ndarray) -> None:
        super().__init__()
        self.layer, self.change = layer, torch.from_numpy(change).float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + x @ self.change.T


@torch.inference_mode()
def test_quantised_layers(tmp_path: Path) -> None:
    """The base has 8 bits, and so have its activations. The adapter has floats."""
    module = tiny_model("llama")
    products = write_adapter(tmp_path, module, projections(2, [*QKVO, *MLP]))
    probe = check_packing(module, CPU, VOCAB_SIZE)
    quantize_module(module, "int8", None)
    reference = copy.deepcopy(module)
    for name, product in products.items():
        reference.set_submodule(name, Changed(module.get_submodule(name), 1.5 * product))
    model = TransformersModel(module, model_info(), BatchedBackend(), probe=probe)
    serve_adapters(model, [read_adapter(tmp_path, "a")], torch.float32)
    batch = replace(random_prompts([5, 4], VOCAB_SIZE), adapters=[0, 0])
    assert model.adapter_rows is not None
    model.adapter_rows.set(batch, head_reads_all=True)
    _, expected = probe_layers(reference, batch)
    _, actual = probe_layers(module, batch)
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)
