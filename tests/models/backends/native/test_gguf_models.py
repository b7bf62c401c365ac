"""GGUF files in the native backend: quantised values, row orders and merged projections."""

from pathlib import Path

import pytest
import torch

from stonechat_models.backends.transformers.load import load_module
from stonechat_models.checkpoint.resolve import ModelFiles, resolve_model
from stonechat_models.config import EngineConfig
from tests.models import tiny_gguf
from tests.models.backends.native.native_helpers import load_native, make_batch, random_ids
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
    assert error < 1.5e-3
    assert quantization == "none"


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


@pytest.mark.parametrize("tiny_file", [("llama", "F16")], indirect=True)
@pytest.mark.parametrize(("quantize", "bound"), [("int8", 0.12), ("int4", 0.6)])
def test_float_files_can_be_quantised(tiny_file: ModelFiles, quantize: str, bound: float) -> None:
    error, quantization = logits_error(tiny_file, quantize)
    assert error < bound
    assert quantization == quantize


@pytest.mark.parametrize(
    "name",
    ["granite", "mixtral", *nightly("olmo2", "smollm3", "gemma", "qwen3vl", "mistral3")],
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
    assert (actual - expected).square().mean().sqrt() < 1e-2 * expected.std()
