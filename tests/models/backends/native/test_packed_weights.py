"""Packed weights on the compiled path: their own numbers in 4 bits, or int8."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from stonechat_models.backends.native import supports
from stonechat_models.backends.native.bindings import Kind, load_library
from stonechat_models.backends.native.packing import PackedWeights
from stonechat_models.backends.native.plan.spec import read_spec
from stonechat_models.backends.native.plan.weights import plan_weights
from stonechat_models.backends.native.stores import open_store
from stonechat_models.checkpoint.resolve import ModelFiles, resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from tests.models.backends.native.native_helpers import (
    load_native,
    make_batch,
    random_ids,
    unpacked_row,
)
from tests.models.packed_writers import (
    CASES,
    GPTQ,
    fp8,
    gptq,
    is_linear_or_expert,
    mlx,
    order_like_mlx,
    save_packed,
    stack_experts,
)

IDS = random_ids(60)
BLOCKS = [7, 3, 11, 2]
KINDS = {"INT4_SYM": Kind.Q4_0, "INT4": Kind.Q4_1, "INT3": Kind.Q4_1}
KINDS |= {"INT2": Kind.Q4_1, "MXFP4": Kind.MXFP4}


def resolve(folder: Path) -> ModelFiles:
    config = EngineConfig(model=str(folder), device="cpu")
    files = resolve_model(config, lambda line: None)
    assert supports(files, config) is None
    return files


def packed_matrices(files: ModelFiles) -> dict[str, tuple[Kind, np.ndarray]]:
    """The kind of each matrix of the model, and what it holds."""
    library, spec = load_library(), read_spec(files.config)
    store = open_store(files, {})
    plan = plan_weights(spec, store, "auto")
    weights = PackedWeights(library, plan.matrices, 1)
    store.close()
    return {
        matrix.rows.name: (
            matrix.kind,
            np.stack([unpacked_row(library, packed, row) for row in range(matrix.rows.n)]),
        )
        for matrix, packed in zip(plan.matrices, weights.matrices, strict=True)
    }


@pytest.mark.parametrize("name", CASES)
def test_matrices_hold_the_packed_numbers(name: str, tmp_path: Path) -> None:
    """4-bit numbers are exact but for half-precision offsets; int8 is as near as a group allows."""
    writer, quantization, type_name = CASES[name]
    floats = save_packed(tmp_path, "llama", writer, quantization, num_hidden_layers=1)
    kind = KINDS.get(type_name, Kind.Q8_0)
    is_exact = kind == Kind.Q4_0 or name in ("w8a8", "w8a16", "gptq-8", "mxfp4")
    packed = packed_matrices(resolve(tmp_path))
    for key, expected in floats.items():
        if not key.endswith("_proj.weight"):
            continue
        actual_kind, actual = packed[key]
        assert actual_kind == kind
        groups = expected.numpy().reshape(-1, 32)
        top = np.abs(groups).max(1, keepdims=True)
        allowed = {True: 1e-7, False: 0.0042 if kind == Kind.Q8_0 else 0.001}[is_exact]
        assert (np.abs(actual.reshape(-1, 32) - groups) <= allowed * top).all()


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3_moe"])
@pytest.mark.parametrize("name", ["gptq-asym", "awq", "fp8-block", "nvfp4-modelopt"])
def test_logits_are_those_of_the_floats(name: str, family: str, tmp_path: Path) -> None:
    writer, quantization, _ = CASES[name]
    save_packed(tmp_path, family, writer, quantization)
    # Activations are int8. A row whose two best experts nearly tie may go to the other one.
    assert errors_of(tmp_path, forward(tmp_path)).median() < 0.05


def test_stacked_experts_of_mlx_are_those_of_the_floats(tmp_path: Path) -> None:
    config = {"group_size": 32, "bits": 4}
    floats = save_packed(tmp_path, "qwen3_moe", mlx(), config, is_linear_or_expert)
    stack_experts(tmp_path)
    names = [f"model.layers.0.mlp.experts.{i}.down_proj.weight" for i in range(10)]
    kind, actual = packed_matrices(resolve(tmp_path))[names[0]]
    assert kind == Kind.Q4_1
    np.testing.assert_allclose(actual, torch.cat([floats[n] for n in names]), rtol=1e-5, atol=1e-6)
    assert errors_of(tmp_path, forward(tmp_path)).median() < 0.05


def test_groups_of_mlx_without_a_scale_are_their_bias(tmp_path: Path) -> None:
    save_packed(tmp_path, "llama", *CASES["mlx-4"][:2])
    path, base = tmp_path / "model.safetensors", "model.layers.0.mlp.up_proj"
    stored = load_file(path)
    assert stored[f"{base}.weight"][0, 0] != 0
    stored[f"{base}.scales"][0, 0] = 0.0
    save_file(stored, path)
    kind, actual = packed_matrices(resolve(tmp_path))[f"{base}.weight"]
    assert kind == Kind.Q4_1
    np.testing.assert_array_equal(actual[0, :32], float(stored[f"{base}.biases"][0, 0]))


@pytest.mark.parametrize("family", ["qwen3_5_text", "lfm2"])
def test_convolutions_and_norms_of_mlx(family: str, tmp_path: Path) -> None:
    save_packed(tmp_path, family, *CASES["mlx-4"][:2], is_projection, num_hidden_layers=4)
    order_like_mlx(tmp_path)
    assert errors_of(tmp_path, forward(tmp_path)).median() < 0.1


def test_names_of_mlx_for_models_that_see(tmp_path: Path) -> None:
    save_packed(tmp_path, "llama", *CASES["mlx-4"][:2])
    path = tmp_path / "model.safetensors"
    save_file({f"language_model.{name}": t for name, t in load_file(path).items()}, path)
    assert errors_of(tmp_path, forward(tmp_path)).median() < 0.05


def forward(folder: Path) -> torch.Tensor:
    model = load_native(resolve(folder))
    return model.forward(make_batch([(IDS, 0, BLOCKS)], all_rows=True))


def errors_of(folder: Path, actual: torch.Tensor) -> torch.Tensor:
    """The root mean square error of each row of logits over the logits' spread."""
    module = AutoModelForCausalLM.from_pretrained(folder / "float", dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = module(torch.tensor([IDS]), use_cache=False).logits[0]
    return ((actual - expected) / expected.std()).square().mean(1).sqrt()


def is_projection(name: str) -> bool:
    return "proj" in name


@pytest.mark.parametrize("name", ["gptq-asym", "fp8-block", "bnb-nested"])
def test_recurrent_layers_may_be_packed(name: str, tmp_path: Path) -> None:
    """Their small projections are kept as floats. The errors of int8 add up in their states."""
    writer, quantization, _ = CASES[name]
    save_packed(tmp_path, "qwen3_5_text", writer, quantization, is_projection, num_hidden_layers=4)
    assert errors_of(tmp_path, forward(tmp_path)).median() < 0.1


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_biases_of_zeros_are_left_out(value: float, tmp_path: Path) -> None:
    """Some writers of GPTQ add them to layers that have none."""
    writer, quantization, _ = CASES["gptq"]
    save_packed(tmp_path, "llama", writer, quantization, attention_bias=False)
    path, name = tmp_path / "model.safetensors", "model.layers.0.self_attn.q_proj.bias"
    save_file({**load_file(path), name: torch.full((128,), value)}, path)
    if value == 0.0:
        load_native(resolve(tmp_path))
        return
    with pytest.raises(ModelLoadError, match=f"does not account for.*: {name}"):
        load_native(resolve(tmp_path))


def test_zeros_and_order_are_those_of_the_data(tmp_path: Path) -> None:
    """The config may be wrong about them."""
    floats = save_packed(tmp_path, "llama", gptq(symmetric=False, act_order=True), GPTQ)
    kind, actual = packed_matrices(resolve(tmp_path))[name := "model.layers.0.mlp.up_proj.weight"]
    assert kind == Kind.Q8_0
    np.testing.assert_allclose(actual, floats[name].numpy(), atol=0.0042 * floats[name].abs().max())


@pytest.mark.parametrize("key", ["quantization_config", "quantization"])
def test_adapters_are_left_to_pytorch(key: str, tmp_path: Path) -> None:
    """MLX has another key for what it is."""
    writer, quantization, _ = CASES["mlx-4"] if key == "quantization" else (fp8(), {}, "")
    save_packed(tmp_path, "llama", writer, quantization)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, key: raw.pop("quantization_config")}))
    config = EngineConfig(model=str(tmp_path), device="cpu", adapter=str(tmp_path / "adapter"))
    files = resolve_model(EngineConfig(model=str(tmp_path)), lambda line: None)
    reason = supports(files, config)
    assert reason == "an adapter is merged into floats, not into quantised weights"


def test_types_without_kernels_are_left_to_pytorch(tmp_path: Path) -> None:
    save_packed(tmp_path, "llama", *CASES["gptq"][:2])
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["lm_head.weight"].double()}, path)
    config = EngineConfig(model=str(tmp_path), device="cpu")
    reason = supports(resolve_model(config, lambda line: None), config)
    assert reason == "weights of type F64 are not supported by the native backend"


@pytest.mark.parametrize("factor", [1e9, 1e-12])
@pytest.mark.parametrize("name", ["w4a16", "w8a8"])
def test_scales_beyond_half_precision_are_refused(name: str, factor: float, tmp_path: Path) -> None:
    """They would become infinite, or all 0."""
    save_packed(tmp_path, "llama", *CASES[name][:2])
    path, scale = tmp_path / "model.safetensors", "model.layers.0.mlp.up_proj.weight_scale"
    tensors = load_file(path)
    save_file({**tensors, scale: tensors[scale].float() * factor}, path)
    with pytest.raises(
        UnsupportedModelError, match=r"up_proj\.weight has scales that half precision"
    ):
        packed_matrices(resolve(tmp_path))
