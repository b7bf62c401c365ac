"""GGUF files whose weights stay as stored give the logits of the same file dequantised."""

import gguf
import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.quantization.codes import code_products
from stonechat_models.backends.quantization.codes.coded_linear import CodedEmbedding, CodedLinear
from stonechat_models.backends.quantization.scratch import Scratch
from stonechat_models.backends.transformers.loading import quantize
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.backends.transformers.stored import codes as stored_codes
from stonechat_models.backends.transformers.stored.choice import can_keep_codes
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from tests.models import tiny_gguf
from tests.models.checkpoint.gguf.converted_models import converted_model
from tests.models.coded_gguf import write_coded_gguf
from tests.models.converted_gguf import write_converted
from tests.models.dequantised import dequantised
from tests.models.media.compiled_models import make_model
from tests.models.random_codes import random_codes
from tests.models.tiny_gguf import VOCAB, write_tiny_gguf
from tests.models.tiny_mmproj import write_mmproj, write_text
from tests.nightly import nightly

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Loads a file in float32, with or without its codes, and the lines of progress.

    Each product is checked with two numbers of rows. `test_the_check_runs_each_kernel` has all.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tiny_gguf, "LAYERS", 1)
    rows = code_products.KERNEL_ROWS
    monkeypatch.setattr(code_products, "KERNEL_ROWS", (rows[0], rows[-1]))
    lines: list[str] = []

    def load(path, *, keeps_codes: bool):
        config = EngineConfig(model=str(path), dtype="float32")
        files = resolve_model(config, lines.append)
        return load_module(
            files, config, DEVICE, torch.float32, keeps_codes=keeps_codes, progress=lines.append
        )

    load.lines = lines
    return load


@torch.inference_mode()
def assert_same_logits(coded, plain, vocab: int) -> None:
    ids = torch.randint(vocab, (2, 9), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = plain(input_ids=ids, use_cache=False).logits
    actual = coded(input_ids=ids, use_cache=False).logits
    assert expected.std() > 0.01
    assert float((actual - expected).abs().max() / expected.std()) < 1e-3


def coded_names(module) -> set[str]:
    kinds = (CodedLinear, CodedEmbedding)
    return {name for name, part in module.named_modules() if isinstance(part, kinds)}


@pytest.mark.parametrize(
    ("architecture", "per_layer", "tops"),
    [
        ("phi3", 4, 2),
        ("gemma3", 7, 2),
        pytest.param("llama", 7, 2, marks=pytest.mark.nightly),
        pytest.param("qwen2", 7, 2, marks=pytest.mark.nightly),
    ],
)
def test_architectures(architecture, per_layer, tops, loaded, tmp_path):
    """RoPE pairs, biases, merged projections, and a tied head below a scaled embedding."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", architecture, "Q8_0")
    plain = loaded(path, keeps_codes=False)
    coded = loaded(path, keeps_codes=True)
    assert type(coded) is type(plain)
    assert len(coded_names(coded)) == per_layer + tops
    assert not coded_names(plain)
    assert_same_logits(coded, plain, VOCAB)
    assert quantize.num_weights(coded) == quantize.num_weights(plain)
    assert quantize.stored_label(coded) == "as stored (Q8_0)"


def test_a_head_shares_no_other_embedding(loaded, tmp_path):
    """Gemma 4 has a second one, with a part for each layer."""
    module = converted_model("gemma4-e4b", hidden_size_per_layer_input=32)
    path = write_converted(module, "gemma4", tmp_path / "x.gguf", gguf.GGMLQuantizationType.Q8_0)
    plain = loaded(path, keeps_codes=False)
    coded = loaded(path, keeps_codes=True)
    assert {"model.embed_tokens", "model.embed_tokens_per_layer"} < coded_names(coded)
    assert_same_logits(coded, plain, 256)


@pytest.mark.parametrize("name", ["gemma3", *nightly("idefics3")])
def test_the_text_of_a_model_with_a_vision_part(name, loaded, tmp_path, monkeypatch):
    """The tower's weights are floats beside it."""
    model = make_model(tmp_path / "folder", name, monkeypatch)
    path = write_text(model, name, tmp_path / "x.gguf", gguf.GGMLQuantizationType.Q8_0)
    write_mmproj(model, name, tmp_path / "mmproj.gguf")
    plain = loaded(path, keeps_codes=False)
    coded = loaded(path, keeps_codes=True)
    assert type(coded) is type(plain) is type(model.module)
    assert quantize.stored_label(coded) == "as stored (Q8_0)"
    assert_same_logits(coded, plain, 256)
    text = {*coded.get_decoder().parameters(), *coded.get_output_embeddings().parameters()}
    tower = {key: value for key, value in coded.named_parameters() if value not in text}
    expected = model.module.state_dict()
    assert len(tower) > 20
    for key, value in tower.items():
        assert torch.equal(value.cpu(), expected[key]), key


@pytest.mark.parametrize("tied", [False, True])
def test_types_of_one_file(tied, loaded, tmp_path):
    path = write_coded_gguf(tmp_path / "coded.gguf", tied=tied)
    coded = loaded(path, keeps_codes=True)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))  # no copy of the weights
    plain = loaded(path, keeps_codes=False)
    assert quantize.stored_label(coded) == "as stored (Q4_K, Q6_K)"
    assert_same_logits(coded, plain, VOCAB)
    data = sum(t.nbytes for t in coded.parameters())
    stored = path.stat().st_size - 32768  # less the tokenizer
    assert stored < quantize.weight_bytes(coded) < 1.03 * (stored + 32768) + data
    if tied:
        head, embedding = coded.lm_head, coded.model.embed_tokens
        assert head.parts[0] is embedding.codes


def test_types_without_a_kernel_become_floats(loaded, tmp_path):
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama", "Q4_1")
    module = loaded(path, keeps_codes=True)
    assert not coded_names(module)
    assert list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_wrong_product_makes_floats_of_all_weights(loaded, tmp_path, monkeypatch):
    def off_by_one(type_name, rows):
        codes = original(type_name, rows)
        codes.low[0] ^= 0x11111111
        return codes

    original = stored_codes.gguf_codes
    monkeypatch.setattr(stored_codes, "gguf_codes", off_by_one)
    module = loaded(write_tiny_gguf(tmp_path / "tiny.gguf", "llama", "Q8_0"), keeps_codes=True)
    assert not coded_names(module)
    assert any("weights are dequantised: the product of" in line for line in loaded.lines)


@pytest.fixture
def failing(monkeypatch):
    """Lets all kernels of products with codes raise an error."""

    def fail_with(error):
        def fail(*_args, **_settings):
            raise error

        monkeypatch.setattr(code_products, "multiply_into", fail)

    return fail_with


def test_kernels_that_cannot_run_make_floats_of_all_weights(loaded, failing, tmp_path):
    failing(RuntimeError("Failed to find C compiler.\nPlease specify one."))
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama", "Q8_0")
    assert not coded_names(loaded(path, keeps_codes=True))
    line = "weights are dequantised: RuntimeError: Failed to find C compiler."
    assert line in loaded.lines


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError(), "not enough memory"),
        (ModelLoadError("the file is torn"), "the file is torn"),
    ],
)
def test_floats_are_no_way_out_of_other_errors(error, message, loaded, failing, tmp_path):
    failing(error)
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama", "Q8_0")
    with pytest.raises(ModelLoadError, match=message):
        loaded(path, keeps_codes=True)


@pytest.mark.parametrize("num_rows", code_products.KERNEL_ROWS)
def test_the_check_runs_each_kernel(num_rows, monkeypatch):
    """A product that is wrong for one number of rows only is found."""
    codes = random_codes("Q4_K", 16, 256, DEVICE)
    layer = CodedLinear([codes], None, Scratch(DEVICE, torch.float32), torch.float32)
    weight = dequantised(layer).cpu()
    stored_codes.check_product(layer, weight.__getitem__, "name")

    def wrong(output, x, *args, **settings):
        original(output, x, *args, **settings)
        if len(x) == num_rows:
            output *= 1.01

    original = code_products.multiply_into
    monkeypatch.setattr(code_products, "multiply_into", wrong)
    with pytest.raises(UnsupportedModelError, match="the product of name with Q4_K codes is off"):
        stored_codes.check_product(layer, weight.__getitem__, "name")


@pytest.mark.parametrize(
    "settings",
    [
        {"quantize": "none"},
        {"quantize": "int8"},
        {"deterministic": True},
        {"device_map": "auto"},
    ],
)
def test_settings_that_need_floats(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama", "Q8_0")
    config = EngineConfig(model=str(path))
    files = resolve_model(config, lambda line: None)
    cuda = torch.device("cuda")
    assert can_keep_codes(files, config, cuda)
    assert not can_keep_codes(files, config, torch.device("cpu"))
    changed = EngineConfig(model=str(path), **settings)
    assert not can_keep_codes(files, changed, cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert not can_keep_codes(files, config, cuda)
