"""Which tensors are parts of which weight, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stonechat_models.checkpoint.packed.folder import read_packing
from stonechat_models.checkpoint.packed.integers import PackedIntegers
from stonechat_models.checkpoint.packed.tensors import PackedTensor, Packing
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from tests.models.packed_writers import (
    AWQ,
    CASES,
    GPTQ,
    awq,
    compressed,
    fp8,
    gptq,
    nvfp4,
    pack_quantized,
    quantise_config,
    save_packed,
)

Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"
Tensors = dict[str, torch.Tensor]


def edit_tensors(folder: Path, edit: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def packing_of(folder: Path, *, reads: bool = False) -> Packing:
    files = resolve_model(EngineConfig(model=str(folder)), lambda line: None)
    tensors = load_file(folder / "model.safetensors")
    return read_packing(files, tensors.__getitem__ if reads else None)


def test_the_data_decide_where_the_config_is_wrong(tmp_path: Path) -> None:
    save_packed(tmp_path, "llama", gptq(symmetric=False), GPTQ)
    assert packing_of(tmp_path).tensors[f"{Q}.weight"].type_name == "INT4_SYM"
    assert packing_of(tmp_path, reads=True).tensors[f"{Q}.weight"].type_name == "INT4"
    edit_tensors(tmp_path, lambda t: t.update({f"{Q}.g_idx": t[f"{Q}.g_idx"].flip(0)}))
    assert packing_of(tmp_path, reads=True).tensors[f"{Q}.weight"].type_name == "INT4_IRREGULAR"


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("gptq", "qzeros"),
        ("awq", "scales"),
        ("w4a16", "weight_scale"),
        ("w8a8", "weight_scale"),
        ("fp8-block", "weight_scale_inv"),
        ("bnb-nf4", "weight.absmax"),
    ],
)
def test_missing_parts_are_named(name: str, missing: str, tmp_path: Path) -> None:
    save_packed(tmp_path, "llama", *CASES[name][:2])
    edit_tensors(tmp_path, lambda tensors: tensors.pop(f"{Q}.{missing}"))
    with pytest.raises(ModelLoadError, match=rf"has no weights for {Q}\.{missing}"):
        packing_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("gptq", "scales"),
        ("gptq", "qweight"),
        ("awq", "qzeros"),
        ("w4a16", "weight_scale"),
        ("w8a8", "weight_scale"),
        ("fp8-channel", "weight_scale"),
        ("nvfp4", "weight_scale"),
    ],
)
def test_parts_that_do_not_fit_are_refused(name: str, part: str, tmp_path: Path) -> None:
    save_packed(tmp_path, "llama", *CASES[name][:2])
    cut = f"{Q}.{part}"
    edit_tensors(tmp_path, lambda t: t.update({cut: t[cut][:-3, :15].contiguous()}))
    with pytest.raises(ModelLoadError, match=rf"the parts of {Q}\.\w+ do not fit together"):
        packing_of(tmp_path)


def test_scales_of_activations_and_of_the_cache_are_left_out(tmp_path: Path) -> None:
    save_packed(tmp_path, "llama", *CASES["fp8-tensor"][:2])
    side = [f"{Q}.input_scale", f"{Q}.activation_scale", "model.layers.0.self_attn.k_scale"]
    edit_tensors(tmp_path, lambda tensors: tensors.update({n: torch.ones(()) for n in side}))
    assert packing_of(tmp_path).consumed >= set(side)


def test_the_bits_of_a_module_are_those_of_its_group(tmp_path: Path) -> None:
    """Targets that name modules go before those that name a class."""
    save_packed(tmp_path, "llama", pack_quantized(8), {}, lambda name: name == f"{DOWN}.weight")
    eight = load_file(tmp_path / "model.safetensors")
    config = compressed("mixed-precision", num_bits=4, group_size=32)
    weights = {"num_bits": 8, "group_size": 32}
    group = {"targets": ["re:.*down_proj"], "weights": weights}
    config["config_groups"]["group_1"] = group
    save_packed(tmp_path / "four", "llama", pack_quantized(), config)
    parts = {n: t for n, t in eight.items() if n.startswith(f"{DOWN}.")}
    edit_tensors(tmp_path / "four", lambda tensors: tensors.update(parts))
    tensors = packing_of(tmp_path / "four").tensors
    assert tensors[f"{Q}.weight"].type_name == "INT4_SYM"
    assert tensors[f"{DOWN}.weight"].type_name == "INT8"
    assert tensors[f"{DOWN}.weight"].shape == (128, 160)


def test_rows_may_end_within_a_word() -> None:
    """Then only the data say how long they are."""
    weight = np.random.default_rng(0).normal(size=(16, 100)).astype(np.float32)
    tensors, values = pack_quantized(4, -1, symmetric=False)(weight)
    layout = PackedIntegers(4, -1)
    parts = {name: name for name in tensors}
    packed = PackedTensor("x.weight", "INT4", (16, 104), parts, layout, num_spare=7)
    assert torch.equal(packed.values(tensors.__getitem__), torch.from_numpy(values))


def test_headers_allow_what_the_data_tell_of_rows_that_end_within_a_word(tmp_path: Path) -> None:
    """No group of 20 ends with the word, so the headers tell more than the number of words."""
    config = compressed("pack-quantized", num_bits=4, group_size=20)
    changes = {"intermediate_size": 100}
    save_packed(tmp_path, "llama", pack_quantized(4, 20), config, is_down, **changes)
    planned = packing_of(tmp_path).tensors[f"{DOWN}.weight"]
    served = packing_of(tmp_path, reads=True).tensors[f"{DOWN}.weight"]
    assert served.shape == planned.shape == (128, 100)
    assert served.type_name == planned.type_name == "INT4_IRREGULAR"
    assert planned.can_have((128, 97))
    assert not served.can_have((128, 97))
    for shape in ((128, 96), (128, 101), (127, 100)):
        assert not planned.can_have(shape)


def is_attention(name: str) -> bool:
    return name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"))


def is_down(name: str) -> bool:
    return name.endswith("down_proj.weight")


@pytest.mark.parametrize(
    "shape", [[1 << 17, 1 << 16], [127, 160], [128, 161], [128, 0], [-128, -160], [128], []]
)
@pytest.mark.parametrize("name", ["w4a16", "bnb-nf4"])
def test_a_stored_shape_is_compared_with_what_is_stored(
    name: str, shape: list[int], tmp_path: Path
) -> None:
    """Before memory is allocated for it: the first would take 32 GiB."""
    save_packed(tmp_path, "llama", *CASES[name][:2])

    def edit(tensors: Tensors) -> None:
        if name == "w4a16":
            tensors[f"{DOWN}.weight_shape"] = torch.tensor(shape, dtype=torch.int64)
            return
        key = f"{DOWN}.weight.quant_state.bitsandbytes__nf4"
        text = json.dumps({**json.loads(bytes(tensors[key].tolist())), "shape": shape})
        tensors[key] = torch.tensor(list(text.encode()), dtype=torch.uint8)

    edit_tensors(tmp_path, edit)
    read = load_file(tmp_path / "model.safetensors").__getitem__
    packed = packing_of(tmp_path).tensors[f"{DOWN}.weight"]
    with pytest.raises(ModelLoadError, match=rf"the parts of {DOWN}.weight do not fit together"):
        packed.values(read)
    with pytest.raises(ModelLoadError, match=rf"the parts of {DOWN}\.\w+ do not fit together"):
        packing_of(tmp_path, reads=True)


@pytest.mark.parametrize(
    "change", [{"blocksize": 0}, {"blocksize": 32}, {"blocksize": "x"}, {"nested_blocksize": 0}]
)
def test_blocks_that_do_not_fit_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    save_packed(tmp_path, "llama", *CASES["bnb-nested"][:2])
    tensors = load_file(tmp_path / "model.safetensors")
    key = f"{DOWN}.weight.quant_state.bitsandbytes__nf4"
    text = json.dumps({**json.loads(bytes(tensors[key].tolist())), **change})
    tensors[key] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    packed = packing_of(tmp_path).tensors[f"{DOWN}.weight"]
    with pytest.raises(ModelLoadError, match=rf"the parts of {DOWN}.weight do not fit together"):
        packed.values(tensors.__getitem__)


def test_bytes_with_other_scales_are_not_mxfp4(tmp_path: Path) -> None:
    """Their format is not known, so neither is what they stand for."""
    save_packed(tmp_path, "llama", *CASES["mxfp4"][:2])
    scale = f"{Q}.weight_scale"
    edit_tensors(tmp_path, lambda tensors: tensors.update({scale: tensors[scale].float()}))
    with pytest.raises(UnsupportedModelError, match=f"not read: {scale} has the type F32"):
        packing_of(tmp_path)


@pytest.mark.parametrize("name", ["fp8-tensor", "w8a8"])
def test_vectors_with_scales_are_refused_by_name(name: str, tmp_path: Path) -> None:
    save_packed(tmp_path, "llama", *CASES[name][:2])
    key = f"{Q}.weight"
    edit_tensors(tmp_path, lambda tensors: tensors.update({key: tensors[key][0].contiguous()}))
    with pytest.raises(ModelLoadError, match=f"the parts of {key} do not fit together"):
        packing_of(tmp_path)


def test_each_weight_is_read_as_its_group_says(tmp_path: Path) -> None:
    """A pattern has some of the modules, and a class has the others."""
    config = compressed("pack-quantized", num_bits=4, group_size=32)
    weights = {"num_bits": 8, "group_size": 32}
    config["config_groups"]["group_0"]["targets"] = ["re:.*mlp.*"]
    config["config_groups"]["group_1"] = {"targets": ["Linear"], "weights": weights}
    floats = save_packed(tmp_path, "llama", pack_quantized(8), config, is_attention)
    for packing in (packing_of(tmp_path), packing_of(tmp_path, reads=True)):
        packed = packing.tensors[f"{Q}.weight"]
        values = packed.values(load_file(tmp_path / "model.safetensors").__getitem__)
        assert packed.type_name == "INT8"
        assert torch.equal(values, floats[f"{Q}.weight"])


def test_the_blocks_of_modelopt_are_in_four_dimensions(tmp_path: Path) -> None:
    config = {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}
    floats = save_packed(tmp_path, "llama", fp8((32, 32), "weight_scale"), config)

    def edit(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.endswith("weight_scale")]:
            tensors[name] = tensors[name][:, None, :, None].contiguous()

    edit_tensors(tmp_path, edit)
    values = (
        packing_of(tmp_path)
        .tensors[f"{DOWN}.weight"]
        .values(load_file(tmp_path / "model.safetensors").__getitem__)
    )
    assert torch.equal(values, floats[f"{DOWN}.weight"])


@pytest.mark.parametrize(
    ("file", "content", "writer", "type_name"),
    [
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, nvfp4(), "NVFP4"),
        ("quantize_config.json", {**GPTQ, "quant_method": "gptq"}, gptq(), "INT4_SYM"),
        ("quantize_config.json", {"bits": 4, "group_size": 32, "sym": True}, gptq(), "INT4_SYM"),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 32, "version": "GEMM"}, awq(), "INT4"),
    ],
)
def test_the_quantisation_may_be_in_a_file_of_its_own(
    file: str, content: dict[str, Any], writer: Any, type_name: str, tmp_path: Path
) -> None:
    save_packed(tmp_path, "llama", writer, {})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / file).write_text(json.dumps(content))
    assert packing_of(tmp_path).tensors[f"{Q}.weight"].type_name == type_name


def test_tensors_tell_without_a_config(tmp_path: Path) -> None:
    """FP8 has its scales beside it, or none at all."""
    save_packed(tmp_path, "llama", fp8(None, "weight_scale"), {})
    assert packing_of(tmp_path).tensors[f"{Q}.weight"].type_name == "FP8"
    edit_tensors(tmp_path, lambda tensors: tensors.pop(f"{Q}.weight_scale"))
    assert "scale" not in packing_of(tmp_path).tensors[f"{Q}.weight"].parts


@pytest.mark.parametrize(
    ("quantization", "part"),
    [
        ({}, "in the GPTQ or AWQ format, and its config.json does not say which"),
        ({**AWQ, "bits": 8}, "the AWQ format with 8 bits"),
        (
            compressed("pack-quantized", num_bits=3),
            "the compressed-tensors format with 3 bits, which is not read",
        ),
        (
            {**compressed("pack-quantized"), "transform_config": {"config_groups": {"u": {}}}},
            "the compressed-tensors format with transforms",
        ),
        (
            {**compressed("dense"), "sparsity_config": {"format": "sparse-24-bitmask"}},
            "the compressed-tensors format sparse-24-bitmask",
        ),
        ({"quant_method": "auto-round", "packing_format": "x"}, "in the format auto-round"),
        ({"group_size": 64, "bits": 4, "mode": "nvfp4"}, "the MLX format of the mode nvfp4"),
        ({"quant_method": "quark"}, "in the format quark, which needs the package quark"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    quantization: dict[str, Any], part: str, tmp_path: Path
) -> None:
    save_packed(tmp_path, "llama", gptq(), quantization)
    with pytest.raises(UnsupportedModelError, match=part):
        packing_of(tmp_path)


def test_other_types_of_mlx_are_refused(tmp_path: Path) -> None:
    """MLX stores some of them with other numbers."""
    save_packed(tmp_path, "llama", *CASES["mlx-4"][:2])
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "falcon_h1"}))
    with pytest.raises(UnsupportedModelError, match="MLX format of the type falcon_h1"):
        packing_of(tmp_path)


def test_other_modes_of_mlx_are_refused(tmp_path: Path) -> None:
    """Single modules may have one, too."""
    save_packed(tmp_path, "llama", *CASES["mlx-4"][:2])
    mode = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    for quantization in (mode, {"group_size": 32, "bits": 4, DOWN: mode}):
        quantise_config(tmp_path, quantization)
        with pytest.raises(UnsupportedModelError, match="MLX format of the mode mxfp4"):
            packing_of(tmp_path)


def test_older_files_of_mlx_have_another_key(tmp_path: Path) -> None:
    save_packed(tmp_path, "llama", *CASES["mlx-4"][:2])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization"] = config.pop("quantization_config")
    path.write_text(json.dumps(config))
    assert packing_of(tmp_path).tensors[f"{Q}.weight"].type_name == "INT4"


def test_words_of_another_size_are_refused(tmp_path: Path) -> None:
    save_packed(tmp_path, "llama", gptq(), GPTQ)
    edit_tensors(tmp_path, lambda tensors: tensors.update({f"{Q}.qweight": torch.ones(8, 128)}))
    with pytest.raises(UnsupportedModelError, match=f"{Q}.qweight has the type F32"):
        packing_of(tmp_path)


def test_quantisation_of_the_cache_alone_leaves_the_weights(tmp_path: Path) -> None:
    config = {"quant_method": "modelopt", "quant_algo": None, "kv_cache_quant_algo": "FP8"}
    save_packed(tmp_path, "llama", gptq(), config, lambda name: False)
    assert not packing_of(tmp_path).tensors


def test_scales_of_inputs_are_refused(tmp_path: Path) -> None:
    """They multiply the inputs of a layer, so the weights alone are not the model."""
    save_packed(tmp_path, "llama", *CASES["nvfp4-modelopt"][:2])
    edit_tensors(tmp_path, lambda tensors: tensors.update({f"{Q}.pre_quant_scale": torch.ones(8)}))
    with pytest.raises(UnsupportedModelError, match="ModelOpt format with scales of inputs"):
        packing_of(tmp_path)


def test_a_package_may_read_a_format(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    save_packed(tmp_path, "llama", gptq(), GPTQ)
    quantise_config(tmp_path, {"quant_method": "torchao"})
    assert not packing_of(tmp_path).is_read_here
