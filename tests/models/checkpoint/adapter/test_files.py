"""LoRA adapters on disk: what is read, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stonechat_models.checkpoint.adapter.files import read_adapter, refuse_adapter_alone
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from tests.models.tiny_adapters import BASE, projections, write_adapter
from tests.models.tiny_models import tiny_model

NAMES = projections()


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    return tiny_model("llama")  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 6 / 4),
        ({"lora_alpha": 3}, 3 / 4),
        ({"use_rslora": True}, 6 / 2),
        ({"alpha_pattern": {"q_proj": 10}}, 10 / 4),
        ({"alpha_pattern": {r"model\.layers\.0.*": 10}}, 10 / 4),
        ({"alpha_pattern": {"proj": 10, "k_proj": 10}}, 6 / 4),
        ({"rank_pattern": {"q_proj": 2}}, 6 / 2),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 1}}, 1 / 2),
        ({"fan_in_fan_out": True, "init_lora_weights": "gaussian"}, 6 / 4),
    ],
)
def test_the_scale_of_a_layer(
    module: torch.nn.Module, tmp_path: Path, config: dict[str, Any], scale: float
) -> None:
    products = write_adapter(tmp_path / "mine", module, NAMES, **config)
    adapter = read_adapter(tmp_path / "mine", "mine")
    assert adapter.base == BASE
    assert adapter.layers.keys() == {f"{name}.weight" for name in NAMES}
    weight = module.get_submodule(NAMES[0]).weight.detach()
    expected = weight.double().numpy() + scale * products[NAMES[0]]
    merged = adapter.merged(f"{NAMES[0]}.weight", weight)
    assert merged.dtype == torch.float32
    np.testing.assert_allclose(merged.numpy(), expected, atol=1e-5)
    rounded = adapter.merged(f"{NAMES[0]}.weight", weight.bfloat16())
    assert rounded.dtype == torch.bfloat16
    np.testing.assert_allclose(rounded.float().numpy(), expected, atol=0.05)


def test_the_description(module: torch.nn.Module, tmp_path: Path) -> None:
    write_adapter(tmp_path, module, NAMES, rank_pattern={"q_proj": 2})
    assert read_adapter(tmp_path, "mine").description == "mine (rank 2 to 4, 6 weights)"
    write_adapter(tmp_path, module, NAMES[:1])
    assert read_adapter(tmp_path, "mine").description == "mine (rank 4, 1 weights)"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"some_new_variant": {"a": 1}}, "some_new_variant"),
        ({"bias": "all"}, "bias all"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights loftq"),
        ({"peft_type": "IA3"}, "peft_type IA3"),
    ],
)
def test_variants_are_refused_by_name(
    module: torch.nn.Module, tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    write_adapter(tmp_path, module, NAMES, **config)
    with pytest.raises(UnsupportedModelError, match=f"mine cannot be served.*{named}"):
        read_adapter(tmp_path, "mine")


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.lm_head.weight",
    ],
)
def test_other_tensors_are_refused_by_name(
    module: torch.nn.Module, tmp_path: Path, name: str
) -> None:
    write_adapter(tmp_path, module, NAMES)
    path = tmp_path / "adapter_model.safetensors"
    save_file(load_file(path) | {name: torch.zeros(4, 4)}, path)
    with pytest.raises(UnsupportedModelError, match=name):
        read_adapter(tmp_path, "mine")


def test_damaged_files_are_refused_by_name(module: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"has no adapter_config\.json"):
        read_adapter(tmp_path, "mine")
    write_adapter(tmp_path, module, NAMES, r=5)
    with pytest.raises(ModelLoadError, match=r"_proj needs both tensors of rank 5"):
        read_adapter(tmp_path, "mine")
    for config in ({"r": "four"}, {"lora_alpha": None}, {"r": 0}):
        write_adapter(tmp_path, module, NAMES, **config)
        with pytest.raises(ModelLoadError, match=r"cannot read .*adapter_config\.json"):
            read_adapter(tmp_path, "mine")
    write_adapter(tmp_path, module, NAMES)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelLoadError, match=r"cannot read .*adapter_model\.safetensors"):
        read_adapter(tmp_path, "mine")
    path.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match=r"only as adapter_model\.bin"):
        read_adapter(tmp_path, "mine")


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    "pattern",
    ["x" * 2000, "(", "(?=a)a", r"(q|k)_proj\1"],
)
def test_patterns_that_are_not_read_are_refused(
    module: torch.nn.Module, tmp_path: Path, key: str, pattern: str
) -> None:
    write_adapter(tmp_path, module, NAMES, **{key: {pattern: 4}})
    with pytest.raises(ModelLoadError, match=r"cannot read .*adapter_config\.json"):
        read_adapter(tmp_path, "mine")


@pytest.mark.parametrize(
    "pattern",
    [
        r"model\.layers\.(0|1)\.(self_attn|mlp)\.(q|o|down)_proj",
        r"^model\.layers\.[01]\..*_proj$",
        "(?:q|o|down)_proj",
        r"layers\.\d+\.\w+\.[a-z_]+",
        r"(\w+\.)*\w+_proj",
    ],
)
def test_patterns_of_common_kinds_are_read(
    module: torch.nn.Module, tmp_path: Path, pattern: str
) -> None:
    write_adapter(tmp_path, module, NAMES, alpha_pattern={pattern: 10})
    layers = read_adapter(tmp_path, "mine").layers
    assert {layer.scale for layer in layers.values()} == {10 / 4}


def test_shapes_are_compared_before_anything_is_multiplied(tmp_path: Path) -> None:
    write_adapter(tmp_path, torch.nn.ModuleDict({"x": torch.nn.Linear(4, 4)}), ["x"], rank=1)
    size = 1 << 24  # the product would take a petabyte
    tensors = {"A": torch.zeros(1, size), "B": torch.zeros(size, 1)}
    named = {f"base_model.model.x.lora_{name}.weight": t for name, t in tensors.items()}
    save_file(named, tmp_path / "adapter_model.safetensors")
    adapter = read_adapter(tmp_path, "mine")
    assert adapter.layers["x.weight"].shape == (size, size)
    for transposed in (False, True):
        weight = torch.zeros(4, 5).T if transposed else torch.zeros(4, 5)
        with pytest.raises(ModelLoadError, match=f"{size} x {size}, which is 4 x 5 here"):
            adapter.merged("x.weight", weight, transposed=transposed)
    named["base_model.model.x.lora_A.weight"] = torch.zeros(1)
    save_file(named, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelLoadError, match="x needs both tensors of rank 1"):
        read_adapter(tmp_path, "mine")


def test_weights_that_cannot_take_it_are_refused(module: torch.nn.Module, tmp_path: Path) -> None:
    write_adapter(tmp_path, module, NAMES)
    adapter = read_adapter(tmp_path, "mine")
    with pytest.raises(ModelLoadError, match=f"belongs to {BASE}"):
        adapter.merged(f"{NAMES[0]}.weight", torch.zeros(32, 31))
    for dtype in (torch.int8, torch.float8_e4m3fn):
        with pytest.raises(UnsupportedModelError, match="quantised weights"):
            adapter.merged(f"{NAMES[0]}.weight", torch.zeros(32, 32).to(dtype))
    with pytest.raises(ModelLoadError, match=rf"tiny has no weights a\.weight.*{BASE}"):
        adapter.refuse_missing("tiny", {"a.weight"})
    adapter.refuse_missing("tiny", set())


def test_an_adapter_alone_says_how_to_serve_it(module: torch.nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_adapter(folder, module, NAMES)
    command = f"stonechat serve {BASE} --adapter {folder}"
    with pytest.raises(ModelLoadError, match=f"is a LoRA adapter for {BASE}.*{command}"):
        refuse_adapter_alone(folder)
    (folder / "config.json").write_text("{}")  # training leaves it there too
    with pytest.raises(ModelLoadError, match=command):
        refuse_adapter_alone(folder)
    (folder / "model.safetensors").touch()
    refuse_adapter_alone(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": 0}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="stonechat serve MODEL --adapter"):
        refuse_adapter_alone(folder)
