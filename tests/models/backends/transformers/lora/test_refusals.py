"""Adapters that do not fit a model, and models and settings that cannot have adapters."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stonechat_models.backends.transformers.lora.install import refuse_other_layers
from stonechat_models.backends.transformers.lora.linear import Stack
from stonechat_models.backends.transformers.lora.serve import refuse_lora_settings
from stonechat_models.checkpoint.adapter.files import Adapter, read_adapter
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from tests.models.engines import make_engine
from tests.models.tiny_adapters import projections, write_adapter
from tests.models.tiny_models import tiny_model


def written(folder: Path, module: torch.nn.Module, names: list[str], **config) -> Adapter:
    write_adapter(folder, module, names, **config)
    return read_adapter(folder, "mine")


def test_adapters_of_other_models(tmp_path: Path) -> None:
    adapter = written(tmp_path, tiny_model("llama"), projections(2))
    with pytest.raises(ModelLoadError, match=r"no weights model\.layers\.1\..*someone/base"):
        refuse_other_layers(tiny_model("llama", num_hidden_layers=1), [adapter], "tiny")
    with pytest.raises(ModelLoadError, match=r"mine changes .* of 32 x 48, which is 64 x 48"):
        refuse_other_layers(tiny_model("llama", hidden_size=64), [adapter], "tiny")


def test_a_copy_of_the_head_must_be_the_models_own(tmp_path: Path) -> None:
    """PEFT writes it beside the adapter of a head."""
    module = tiny_model("llama")
    write_adapter(tmp_path, module, ["lm_head"])
    path = tmp_path / "adapter_model.safetensors"
    weight = module.lm_head.weight.bfloat16()
    name = "base_model.model.lm_head.base_layer.weight"
    save_file(load_file(path) | {name: weight}, path)
    adapter = read_adapter(tmp_path, "mine")
    assert list(adapter.layers) == ["lm_head.weight"]
    refuse_other_layers(module, [adapter], "tiny")
    adapter.merged("lm_head.weight", module.lm_head.weight)
    for other in (weight * 1.01, weight[:-1]):
        save_file(load_file(path) | {name: other.contiguous()}, path)
        with pytest.raises(UnsupportedModelError, match=r"brings another lm_head\.weight"):
            refuse_other_layers(module, [adapter], "tiny")
        with pytest.raises(UnsupportedModelError, match="mine brings another"):
            adapter.merged("lm_head.weight", module.lm_head.weight)


@pytest.mark.parametrize(
    ("family", "layer", "kind"),
    [
        ("llama", "model.embed_tokens", "Embedding"),
        ("qwen3_moe", "model.layers.0.mlp.gate", "Router"),
    ],
)
def test_layers_that_are_not_linear(family: str, layer: str, kind: str, tmp_path: Path) -> None:
    module = tiny_model(family)
    adapter = written(tmp_path, module, [layer])
    with pytest.raises(UnsupportedModelError, match=rf"mine changes {layer}\.weight, a \w*{kind}"):
        refuse_other_layers(module, [adapter], family)


def test_layers_that_do_not_get_all_tokens(tmp_path: Path) -> None:
    """The check at load notices them, whatever the reason."""
    module = tiny_model("llama")
    adapter = written(tmp_path, module, projections(1))
    mlp = module.model.layers[0].mlp
    forward = mlp.forward
    mlp.forward = lambda x: torch.cat([forward(half) for half in x.chunk(2, dim=1)], dim=1)
    with pytest.raises(UnsupportedModelError, match=r"change model\.layers\.0\.mlp\.down_proj, wh"):
        make_engine(module, adapters=[adapter])


def test_a_step_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add_to(*args: object) -> None:
        raise RuntimeError("expected m1 and m2 to have the same dtype")

    module = tiny_model("llama")
    adapter = written(tmp_path, module, projections(1))
    monkeypatch.setattr(Stack, "add_to", add_to)
    with pytest.raises(UnsupportedModelError, match="a step with adapters fails: expected m1"):
        make_engine(module, adapters=[adapter])


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    module = tiny_model("llama")
    adapter = written(tmp_path, module, projections(1))
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[adapter.layers["model.layers.0.mlp.down_proj.weight"].b][3, 1] = torch.nan
    save_file(tensors, path)
    with pytest.raises(ModelLoadError, match=r"down_proj\.weight are not finite"):
        make_engine(module, adapters=[adapter])


def test_models_with_a_cache_of_their_own(tmp_path: Path) -> None:
    module = tiny_model("stablelm")
    adapter = written(tmp_path, module, projections(1))
    with pytest.raises(UnsupportedModelError, match="one sequence at a time"):
        make_engine(module, adapters=[adapter])


@pytest.mark.parametrize(
    ("flag", "changes"),
    [("--deterministic", {"deterministic": True}), ("--device-map", {"device_map": "auto"})],
)
def test_settings_that_adapters_do_not_have(flag: str, changes: dict) -> None:
    config = EngineConfig(model="m", **changes)
    refuse_lora_settings(config)
    with pytest.raises(UnsupportedModelError, match=f"--lora does not work with {flag}"):
        refuse_lora_settings(replace(config, lora=("a=b",)))


def test_what_the_model_says_of_them(tmp_path: Path) -> None:
    module = tiny_model("llama")
    adapter = written(tmp_path, module, projections(2), rank_pattern={"q_proj": 2})
    (info,) = make_engine(module, adapters=[adapter]).model.info.adapters
    assert (info.name, info.rank, info.num_weights) == ("mine", 4, 6)
    per_layer = 2 * (32 + 32) + 4 * (32 + 32) + 4 * (48 + 32)
    assert info.num_bytes == 2 * per_layer * 4 == adapter.num_elements * 4
    assert len(info.weights_hash) >= 8
