"""Adapters beside a model on a CUDA device: fused layers, graphs and overlapped steps."""

import torch

from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.lora.linear import LoraLinear
from stonechat_models.backends.transformers.verify import TOLERANCE
from tests.gpu.built import build
from tests.models.engines import add, deviations, greedy, run
from tests.models.tiny_adapters import projections
from tests.models.tiny_loras import tiny_lora
from tests.models.tiny_models import save_tiny_model, tiny_model
from tests.models.tiny_tokenizers import save_byte_level

PROMPTS = [[40, 50, 60], list(range(100, 120)), [70]]
PARTS = [f"self_attn.{name}_proj" for name in "qkvo"]
PARTS += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def test_sequences_of_adapters_and_of_the_model_share_steps(tmp_path, device):
    folder = save_tiny_model(
        tmp_path / "tiny", "llama", save_byte_level(tmp_path / "tokenizer"), vocab_size=320
    )
    module = tiny_model("llama", vocab_size=320)
    loras = [
        tiny_lora(tmp_path / "a", module, projections(2, PARTS)),
        tiny_lora(tmp_path / "b", module, projections(1, PARTS[1:2]), seed=2),
    ]
    names = tuple(f"{lora.name}={tmp_path / lora.name}" for lora in loras)
    engine, progress = build(folder, dtype="float32", lora=names)
    assert "fused modules: 2 FusedAttention, 2 FusedDecoderLayer" in progress
    assert "without CUDA graphs" not in progress
    graphed = engine.model
    assert isinstance(graphed, GraphedModel)
    references = {"": module} | {lora.name: lora.merged for lora in loras}
    for group in (["", "a", "b"], ["", "", ""], ["a", "", "a"]):
        for i, (prompt, name) in enumerate(zip(PROMPTS, group, strict=True)):
            add(engine, str(i), prompt, greedy(4, ignore_eos=True), adapter=name)
        results = run(engine)
        for i, (prompt, name) in enumerate(zip(PROMPTS, group, strict=True)):
            errors = deviations(references[name], prompt, results[str(i), 0])
            assert float(errors.max()) < TOLERANCE["logits"][torch.float32]
    module = graphed.model.module
    layers = [part for part in module.modules() if isinstance(part, LoraLinear)]
    assert len(layers) == 2 * 4, "query, key and value are one layer, and so are gate and up"
    for layer in layers:
        assert {stack.a.device for stack in layer.stacks} == {layer.base.weight.device}
