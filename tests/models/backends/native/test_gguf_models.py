"""GGUF files in the native backend: quantised values, row orders and merged projections."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from stonechat_models.backends.native.support import footprint
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.checkpoint.gguf.reader import read_gguf
from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.checkpoint.resolve import ModelFiles, resolve_model
from stonechat_models.config import EngineConfig
from tests.models import tiny_gguf
from tests.models.backends.native.native_helpers import load_native, make_batch, random_ids
from tests.models.backends.native.random_blocks import random_blocks
from tests.models.checkpoint.gguf.converted_models import MODELS, converted_model
from tests.models.converted_gguf import write_converted
from tests.nightly import nightly

IDS = random_ids(75, vocab_size=tiny_gguf.VOCAB)
FLOAT_FILES = ("phi3", "qwen3moe", "llama", "gemma3")
BLOCKS = [7, 3, 11, 2, 20]


@pytest.fixture
def tiny_file(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_cache: None,
) -> ModelFiles:
    architecture, weight_type = request.param
    monkeypatch.setitem(tiny_gguf.HEAD_DIMS, architecture, 32)
    monkeypatch.setattr(tiny_gguf, "EXPERT_FFN", 96)
    path = tiny_gguf.write_tiny_gguf(tmp_path / "tiny.gguf", architecture, weight_type)
    return resolve_model(EngineConfig(model=str(path)), lambda line: None)


def logits_error(files: ModelFiles, quantize: str = "auto") -> tuple[float, str]:
    """Return the root mean square error of logits to dequantised float32, and the quantisation.

    Wrong weights cause errors above 1. The large random weights amplify the activations' errors.
    """
    config = EngineConfig(model="x")
    module = load_module(files, config, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        expected = module(torch.tensor([IDS]), use_cache=False).logits[0]
    model = load_native(files, quantize=quantize)
    actual = model.forward(make_batch([(IDS, 0, BLOCKS)], all_rows=True))
    error = (actual - expected).square().mean().sqrt() / expected.std()
    return float(error), model.info.quantization


@pytest.mark.parametrize(
    "tiny_file",
    [*((a, "F32") for a in FLOAT_FILES[:2]), *nightly(*((a, "F32") for a in FLOAT_FILES[2:]))],
    indirect=True,
    ids=FLOAT_FILES,
)
def test_rows_are_in_transformers_order(tiny_file: ModelFiles) -> None:
    error, quantization = logits_error(tiny_file)
    assert error < 0.15  # bfloat16 in attention, and rows that go to another expert
    assert quantization == "none"


@pytest.mark.parametrize("tiny_file", [("gemma3", "F32"), ("llama", "F32")], indirect=True)
def test_files_of_models_that_see_say_why_they_take_text_alone(tiny_file: ModelFiles) -> None:
    info = load_native(tiny_file).info
    assert info.images is None
    may_see = tiny_file.config.model_type == "gemma3_text"
    assert ("its vision part is not there" in info.image_refusal) == may_see


@pytest.mark.parametrize(
    "tiny_file",
    [
        ("llama", "Q4_1"),
        ("qwen3moe", "Q4_1"),
        *nightly(("qwen2", "Q4_0"), ("qwen3", "Q8_0"), ("llama", "Q5_1")),
    ],
    indirect=True,
    ids=["Q4_1", "experts-Q4_1", "Q4_0", "Q8_0", "Q5_1"],
)
def test_quantised_files_keep_their_weights(
    tiny_file: ModelFiles, request: pytest.FixtureRequest
) -> None:
    error, quantization = logits_error(tiny_file)
    # The rounding of activations sends some rows to another expert.
    assert error < (0.2 if "experts" in request.node.name else 0.12)
    assert quantization in request.node.name


def superblock_file(type_name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFiles:
    """A small Llama whose matrices are random blocks of 256; the embedding is Q6_K."""

    def random_weights(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        if values.ndim == 1:
            return values
        name = "Q6_K" if values.shape[0] == tiny_gguf.VOCAB else kind.name
        sample = gguf.dequantize(
            random_blocks(name, *values.shape), gguf.GGMLQuantizationType[name]
        )
        scale = 0.02 * float(values.std() / sample.std())
        return random_blocks(name, *values.shape, seed=values.size, scale=scale)

    def add_tensor(writer: gguf.GGUFWriter, name: str, data: np.ndarray, **options: object) -> None:
        if name in ("token_embd.weight", "output.weight"):
            options["raw_dtype"] = gguf.GGMLQuantizationType.Q6_K
        original(writer, name, data, **options)

    original = gguf.GGUFWriter.add_tensor
    monkeypatch.setattr(gguf, "quantize", random_weights)
    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", add_tensor)
    for size, value in {"HIDDEN": 256, "FFN": 512}.items():
        monkeypatch.setattr(tiny_gguf, size, value)
    monkeypatch.setitem(tiny_gguf.HEAD_DIMS, "llama", 64)
    tiny_gguf.write_tiny_gguf(path, "llama", type_name)
    return resolve_model(EngineConfig(model=str(path)), lambda line: None)


@pytest.mark.parametrize("type_name", ["Q4_K", *nightly("Q2_K", "Q3_K", "Q5_K", "Q6_K", "IQ4_XS")])
def test_superblocks_stay_as_in_the_file(
    type_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_cache: None
) -> None:
    """In the order of transformers' rows, and in no more memory than `plan` says."""
    files = superblock_file(type_name, tmp_path / "x.gguf", monkeypatch)
    error, quantization = logits_error(files)
    assert error < 0.12
    assert quantization == type_name
    config = EngineConfig(model=str(tmp_path / "x.gguf"))
    model = load_native(files)
    planned = footprint(read_headers(config, lambda line: None), config)
    assert planned.weight_bytes == model.info.weight_bytes
    file = read_gguf(tmp_path / "x.gguf")
    matrices = [t.data.nbytes for t in file.tensors.values() if len(t.shape) == 2]
    ends = 1.02  # 300 rows take the memory of 304
    assert sum(matrices) <= model.info.weight_bytes <= ends * sum(matrices)


def test_experts_may_have_other_blocks_than_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_cache: None
) -> None:
    """Attention in blocks of 32, experts in blocks of 256: rows have both forms of activations."""
    kind = gguf.GGMLQuantizationType.Q4_K

    def with_random_experts(values: np.ndarray, stored: gguf.GGMLQuantizationType) -> np.ndarray:
        if values.ndim < 3:
            return quantize(values, stored)
        n, k = values.shape[0] * values.shape[1], values.shape[2]
        spread = gguf.dequantize(random_blocks("Q4_K", n, k), kind).std()
        scale = 0.02 * float(values.std() / spread)
        blocks = random_blocks("Q4_K", n, k, seed=values.size, scale=scale)
        return blocks.reshape(*values.shape[:2], -1)

    def add_tensor(writer: gguf.GGUFWriter, name: str, data: np.ndarray, **options: object) -> None:
        if "_exps" in name:
            options["raw_dtype"] = kind
        original(writer, name, data, **options)

    quantize, original = gguf.quantize, gguf.GGUFWriter.add_tensor
    monkeypatch.setattr(gguf, "quantize", with_random_experts)
    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", add_tensor)
    monkeypatch.setattr(tiny_gguf, "HIDDEN", 256)
    monkeypatch.setattr(tiny_gguf, "EXPERT_FFN", 256)
    path = tiny_gguf.write_tiny_gguf(tmp_path / "x.gguf", "qwen3moe", "Q8_0")
    files = resolve_model(EngineConfig(model=str(path)), lambda line: None)
    assert logits_error(files)[0] < 0.2  # rounded activations send some rows to another expert


@pytest.mark.parametrize(("quantize", "bound"), [("int8", 0.12), ("int4", 0.12)])
def test_superblocks_can_be_quantised_again(
    quantize: str, bound: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_cache: None
) -> None:
    """int4 keeps matrices of Q4_K, and makes the ends int8."""
    files = superblock_file("Q4_K", tmp_path / "x.gguf", monkeypatch)
    error, quantization = logits_error(files, quantize)
    assert error < bound
    assert quantization == quantize


@pytest.mark.parametrize("tiny_file", [("llama", "F16")], indirect=True)
@pytest.mark.parametrize(("quantize", "bound"), [("int8", 0.12), ("int4", 0.6)])
def test_float_files_can_be_quantised(tiny_file: ModelFiles, quantize: str, bound: float) -> None:
    error, quantization = logits_error(tiny_file, quantize)
    assert error < bound
    assert quantization == quantize


@pytest.mark.parametrize(
    "name",
    [
        "granite",
        "mixtral",
        "exaone4",
        *nightly("olmo2", "smollm3", "gemma", "qwen3vl", "mistral3", "seed_oss"),
    ],
)
def test_files_of_converted_models_give_their_logits(
    name: str, tmp_path: Path, model_cache: None
) -> None:
    sizes = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 128}
    module = converted_model(name, **sizes)
    path = write_converted(module, MODELS[name][0], tmp_path / "x.gguf")
    files = resolve_model(EngineConfig(model=str(path)), lambda line: None)
    with torch.inference_mode():
        expected = module(torch.tensor([IDS]), use_cache=False).logits[0]
    actual = load_native(files).forward(make_batch([(IDS, 0, BLOCKS)], all_rows=True))
    # The random weights make attention sharp; transformers in bfloat16 errs three times as much.
    assert (actual - expected).square().mean().sqrt() < 0.15 * expected.std()
