"""A family has certain tensors. A missing, surplus or misshapen one is refused."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stonechat_models.backends.native import NativeModel
from stonechat_models.backends.native.packing import _Estimate
from stonechat_models.backends.native.plan.spec import ModelSpec, read_spec
from stonechat_models.backends.native.plan.weights import plan_weights
from stonechat_models.backends.native.stores import HeaderStore
from stonechat_models.checkpoint.headers import ModelHeaders, TensorHeader
from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.checkpoint.resolve import ModelFiles, resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from tests.models import tiny_gguf
from tests.models.backends.native.native_helpers import COMMON, FAMILIES, make_model
from tests.models.tiny_gguf import write_tiny_gguf
from tests.nightly import one_in

Shapes = dict[str, tuple[int, ...]]
SURPLUS = (
    *(f"self_attn.{part}_norm.weight" for part in "qk"),
    *(f"self_attn.{part}_proj.bias" for part in "qkvo"),
    *(f"mlp.{part}_proj.bias" for part in ("gate", "up", "down")),
    *("self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight", "mlp.gate.weight"),
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
    *("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"),
    *("input_layernorm.bias", "mlp.experts.0.up_proj.weight", "mlp.shared_expert.up_proj.weight"),
    "self_attn.q_proj.weight",
)


@cache
def model_of(family: str) -> tuple[ModelSpec, Shapes]:
    """The spec of a family, and the tensors of the module in transformers, without data."""
    import transformers

    name, settings = FAMILIES[family]
    config = getattr(transformers, name)(**{**COMMON, **settings})
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    spec = read_spec(parse_config(config.to_dict(), "config.json"))
    if spec.tied:
        del shapes["lm_head.weight"]
    return spec, shapes


def plan(spec: ModelSpec, shapes: Shapes) -> None:
    tensors = [TensorHeader(name, "F32", shape, 0) for name, shape in shapes.items()]
    headers = ModelHeaders("tiny", parse_config({}, "config.json"), tensors, "safetensors")
    plan_weights(spec, HeaderStore(headers), "auto")


def refusal(spec: ModelSpec, shapes: Shapes) -> str:
    with pytest.raises(ModelLoadError) as error:
        plan(spec, shapes)
    assert str(error.value).startswith("tiny")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_tensor_is_refused(family: str) -> None:
    spec, shapes = model_of(family)
    plan(spec, shapes)
    for name in shapes:
        message = refusal(spec, {key: value for key, value in shapes.items() if key != name})
        # Without one tensor of a layout, the names of another layout are looked for.
        assert name in message or "experts" in name or "mlp.gate.weight" in name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_surplus_tensor_is_refused(family: str) -> None:
    spec, shapes = model_of(family)
    names = [f"model.layers.{i}.{name}" for i in (1, 4) for name in SURPLUS]
    names += ["model.norm.bias", "lm_head.bias", *([] if spec.tied else ["model.lm_head.weight"])]
    new = [name for name in names if name not in shapes]
    assert len(new) > len(SURPLUS)
    for name in new:
        refusal(spec, {**shapes, name: (spec.head_dim,)})


@pytest.mark.parametrize("family", one_in(3, FAMILIES))
def test_a_tensor_of_another_shape_is_refused(family: str) -> None:
    spec, shapes = model_of(family)
    for name, shape in shapes.items():
        for other in other_shapes(shape):
            message = refusal(spec, {**shapes, name: other})
            assert name in message
            assert "expected" in message


def other_shapes(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Shapes with another size somewhere, another order, or another number of dimensions."""
    for i in range(len(shape)):
        for size in (0, 1, shape[i] // 2, shape[i] + 32, 2**33):
            if size != shape[i]:
                yield (*shape[:i], size, *shape[i + 1 :])
    yield (1, *shape)
    yield (*shape, 1)
    yield ()
    yield tuple(shape[:-1])
    if shape[::-1] != shape:
        yield tuple(shape[::-1])
    if len(shape) > 1:
        yield (shape[0] * shape[1], *shape[2:])


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen3", "gemma3", "olmo2"])
def test_what_real_files_have_beside_the_weights_is_harmless(family: str) -> None:
    spec, shapes = model_of(family)
    extras: Shapes = {
        "model.rotary_emb.inv_freq": (16,),
        "model.layers.0.self_attn.rotary_emb.inv_freq": (16,),
        "v_head.summary.weight": (1, 128),
    }
    if spec.tied:
        extras["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    plan(spec, {**shapes, **extras})


# ---------------------------------------------------------------- files


def load(files: ModelFiles) -> NativeModel:
    return NativeModel.load(files, EngineConfig(model="x", threads=1), lambda line: None)


def edited(folder: Path, family: str, edit: Any) -> ModelFiles:
    """A saved model with other tensors in its file."""
    _, files = make_model(family, folder)
    tensors = load_file(files.weights[0])
    edit(tensors)
    save_file(tensors, files.weights[0])
    return files


@pytest.mark.parametrize(
    ("family", "experts", "down"),
    [("qwen3_moe", "mlp.experts", "down_proj"), ("mixtral", "block_sparse_moe.experts", "w2")],
)
def test_each_expert_has_its_shape(family: str, experts: str, down: str, tmp_path: Path) -> None:
    """Also if all of them together have as many rows as are due."""

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        name = f"model.layers.0.{experts}.1.{down}.weight"
        tensors[name] = tensors[name][:, :32].contiguous()

    def shifted(tensors: dict[str, torch.Tensor]) -> None:
        first, second = (f"model.layers.0.{experts}.{i}.{down}.weight" for i in (1, 2))
        both = torch.cat([tensors[first], tensors[second]])
        tensors[first], tensors[second] = both[:16].clone(), both[16:].clone()

    for edit in (narrow, shifted):
        with pytest.raises(ModelLoadError, match=rf"experts\.1\.{down}.*expected 128 x"):
            load(edited(tmp_path / edit.__name__, family, edit))


def test_a_saved_model_with_a_surplus_or_missing_norm_is_refused(tmp_path: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.k_norm.weight"] = torch.ones(32)

    def remove(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.0.self_attn.k_norm.weight"]

    for family, edit in (("llama", add), ("qwen3", remove)):
        with pytest.raises(ModelLoadError, match=r"k_norm\.weight"):
            load(edited(tmp_path / family, family, edit))


@pytest.fixture
def gguf_sizes(monkeypatch: pytest.MonkeyPatch, model_cache: None) -> None:
    for architecture in tiny_gguf.HEAD_DIMS:
        monkeypatch.setitem(tiny_gguf.HEAD_DIMS, architecture, 32)
    monkeypatch.setattr(tiny_gguf, "EXPERT_FFN", 64)


@pytest.mark.usefixtures("gguf_sizes")
@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        *((a, f"attn_{p}_norm.weight") for a in ("qwen3", "qwen3moe", "gemma3") for p in "qk"),
        *(("qwen2", f"attn_{part}.bias") for part in "qkv"),
        *(("gemma2", f"post_{part}_norm.weight") for part in ("attention", "ffw")),
        ("phi3", "attn_qkv.weight"),
        ("llama", "ffn_norm.weight"),
        ("qwen3moe", "ffn_gate_inp.weight"),
        ("qwen3moe", "ffn_up_exps.weight"),
    ],
)
def test_gguf_files_have_all_tensors_of_their_family(
    architecture: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    for missing in (frozenset[str](), frozenset({f"blk.1.{name}"})):
        write_tiny_gguf(path, architecture, skip=missing)
        files = resolve_model(EngineConfig(model=str(path)), lambda line: None)
        if not missing:
            load(files)
            continue
        with pytest.raises(ModelLoadError, match=r"x has no weights for model\.layers\.1\."):
            load(files)


@pytest.mark.usefixtures("gguf_sizes")
@pytest.mark.parametrize(
    ("architecture", "name", "shape"),
    [
        ("llama", "attn_q_norm.weight", (32,)),
        ("llama", "attn_k.bias", (64,)),
        ("phi3", "attn_q.weight", (128, 64)),
        ("qwen2", "attn_output.bias", (64,)),
        ("qwen3", "ffn_gate_inp.weight", (4, 64)),
    ],
)
def test_gguf_files_have_no_other_tensors(
    architecture: str,
    name: str,
    shape: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = tiny_gguf._shapes
    monkeypatch.setattr(tiny_gguf, "_shapes", lambda *args: {**shapes(*args), name: shape})
    path = write_tiny_gguf(tmp_path / "x.gguf", architecture)
    files = resolve_model(EngineConfig(model=str(path)), lambda line: None)
    with pytest.raises(ModelLoadError, match="x has weights that"):
        load(files)


@pytest.mark.usefixtures("gguf_sizes")
def test_rope_divisors_in_a_gguf_file_are_no_surplus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    add_tensors = tiny_gguf._add_tensors

    def with_divisors(writer: gguf.GGUFWriter, *args: Any) -> None:
        add_tensors(writer, *args)
        writer.add_tensor("rope_freqs.weight", np.ones(16, dtype=np.float32))

    monkeypatch.setattr(tiny_gguf, "_add_tensors", with_divisors)
    path = write_tiny_gguf(tmp_path / "x.gguf", "llama")
    load(resolve_model(EngineConfig(model=str(path)), lambda line: None))


def test_a_long_load_says_what_is_left() -> None:
    lines: list[str] = []
    times = iter([10.0, 11.9, 12.5, 13.0, 18.0])
    estimate = _Estimate(8_000_000, lines.append, lambda: next(times))
    for done in (1_000_000, 2_000_000, 3_000_000, 4_000_000):
        estimate.advance(done)
    assert lines == [
        "loading weights: 2.0 MB of 8.0 MB, about 8 s left",
        "loading weights: 4.0 MB of 8.0 MB, about 8 s left",
    ]
