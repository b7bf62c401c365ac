"""Experts that stay as a file stores them give the logits of the same file dequantised."""

import json

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file

pytest.importorskip("triton")

from stonechat_models.backends.transformers.fused.moe.coded_experts import (
    FLOAT32_CODED_TILES,
    CodedExpertLinear,
    Rows,
)
from stonechat_models.backends.transformers.loading import quantize
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.backends.transformers.stored import experts as stored_experts
from stonechat_models.backends.transformers.stored.choice import can_keep_codes
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from tests.models import tiny_gguf
from tests.models.converted_gguf import write_converted
from tests.models.tiny_gguf import VOCAB, write_tiny_gguf
from tests.models.tiny_models import VOCAB_SIZE, tiny_model
from tests.models.tiny_tokenizers import save_byte_level

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Loads a file in float32, with or without its codes, and the lines of progress."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tiny_gguf, "LAYERS", 1)
    lines: list[str] = []

    def load(path, *, keeps_codes):
        config = EngineConfig(model=str(path), dtype="float32")
        files = resolve_model(config, lines.append)
        return load_module(
            *(files, config, DEVICE, torch.float32),
            attn_implementation="eager",
            keeps_codes=keeps_codes,
            progress=lines.append,
        )

    load.lines = lines
    return load


@torch.inference_mode()
def assert_same_logits(coded, plain, vocab):
    ids = torch.randint(vocab, (1, 3), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = plain(input_ids=ids, use_cache=False).logits
    actual = coded(input_ids=ids, use_cache=False).logits
    assert expected.std() > 0.01
    assert float((actual - expected).abs().max() / expected.std()) < 1e-3


def coded_experts(module):
    return [part for part in module.modules() if isinstance(part, CodedExpertLinear)]


def save_gpt_oss(folder):
    """A tiny gpt-oss whose experts are MXFP4, as its checkpoints store them."""
    save_byte_level(folder)
    module = tiny_model("gpt_oss", hidden_size=64, intermediate_size=96)
    for name, parameter in module.named_parameters():
        if "bias" in name:
            parameter.data.normal_(0, 0.3)
    module.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors, generator = load_file(path), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(
            256, (*shape, 16), dtype=torch.uint8, generator=generator
        )
        tensors[f"{name}_scales"] = torch.randint(
            121, 126, shape, dtype=torch.uint8, generator=generator
        )
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_gpt_oss(loaded, tmp_path):
    """The reference is transformers' own dequantisation."""
    folder = save_gpt_oss(tmp_path / "gpt-oss")
    plain = loaded(folder, keeps_codes=False)
    coded = loaded(folder, keeps_codes=True)
    assert not coded_experts(plain)
    assert {part.rows for part in coded_experts(coded)} == {Rows.PAIRS}
    assert len(coded_experts(coded)) == 2 * coded.config.num_hidden_layers
    assert_same_logits(coded, plain, VOCAB_SIZE)
    assert quantize.num_weights(plain) > quantize.num_weights(coded) > 0
    assert quantize.stored_label(coded) == "as stored (MXFP4)"
    assert quantize.weight_bytes(coded) < 0.5 * quantize.weight_bytes(plain)


def test_gguf(loaded, tmp_path):
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "qwen3moe", "Q8_0")
    plain = loaded(path, keeps_codes=False)
    coded = loaded(path, keeps_codes=True)
    assert [part.rows for part in coded_experts(coded)] == [Rows.APART, Rows.HALVES]
    assert_same_logits(coded, plain, VOCAB)
    assert quantize.num_weights(coded) == quantize.num_weights(plain)


@pytest.fixture
def gpt_oss_gguf(tmp_path):
    """A tiny gpt-oss with random biases, as a GGUF file."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": VOCAB}
    module = tiny_model("gpt_oss", num_hidden_layers=1, **sizes)
    for name, parameter in module.named_parameters():
        if "bias" in name:
            parameter.data.normal_(0, 0.3)
    return write_converted(module, "gpt-oss", tmp_path / "oss.gguf", GGMLQuantizationType.Q8_0)


def test_gguf_with_biases(loaded, gpt_oss_gguf):
    plain = loaded(gpt_oss_gguf, keeps_codes=False)
    coded = loaded(gpt_oss_gguf, keeps_codes=True)
    assert [part.rows for part in coded_experts(coded)] == [Rows.APART, Rows.HALVES]
    assert all(part.bias is not None for part in coded_experts(coded))
    assert_same_logits(coded, plain, VOCAB)


def test_a_wrong_bias_is_found(loaded, gpt_oss_gguf, monkeypatch):
    class Swapped(CodedExpertLinear):
        def __init__(self, codes, num_experts, bias, *args):
            super().__init__(codes, num_experts, bias.roll(bias.shape[1] // 2, 1), *args)

    monkeypatch.setattr(stored_experts, "CodedExpertLinear", Swapped)
    assert not coded_experts(loaded(gpt_oss_gguf, keeps_codes=True))
    assert any("as stored are off by" in line for line in loaded.lines)


@pytest.mark.parametrize("pairs", FLOAT32_CODED_TILES)
def test_the_check_runs_each_tile(pairs, loaded, gpt_oss_gguf, monkeypatch):
    def wrong(self, rows, groups, *args):
        output = original(self, rows, groups, *args)
        is_wrong = groups.tile.pairs == pairs and groups.pairs is not None
        return output * 1.01 if is_wrong else output

    original = CodedExpertLinear.forward
    monkeypatch.setattr(CodedExpertLinear, "forward", wrong)
    assert not coded_experts(loaded(gpt_oss_gguf, keeps_codes=True))
    assert any("as stored are off by" in line for line in loaded.lines)


def test_types_without_a_kernel_become_floats(loaded, tmp_path):
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "qwen3moe", "Q4_1")
    assert not coded_experts(loaded(path, keeps_codes=True))


def test_a_wrong_product_is_found(loaded, tmp_path, monkeypatch):
    def shifted(self, is_gated):
        return self.shape[1], 1, 1

    monkeypatch.setattr(CodedExpertLinear, "_strides", shifted)
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "qwen3moe", "Q8_0")
    assert not coded_experts(loaded(path, keeps_codes=True))
    assert any("as stored are off by" in line for line in loaded.lines)


def test_which_files_keep_their_experts(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    folder = save_gpt_oss(tmp_path / "gpt-oss")
    cuda = torch.device("cuda", 0)

    def keeps(device=cuda, **settings):
        config = EngineConfig(model=str(folder), **settings)
        return can_keep_codes(resolve_model(config, lambda _: None), config, device)

    assert keeps()
    assert not keeps(torch.device("cpu"))
    assert not keeps(quantize="none")
    (folder / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "quantization_config": {}})
    )
    assert not keeps()


def test_blocks_are_read_as_transformers_reads_them():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (3, 5, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 140, (3, 5, 2), dtype=torch.uint8, generator=generator)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    floats = [stored_experts._mxfp4_floats(b, s) for b, s in zip(blocks, scales, strict=True)]
    assert torch.equal(torch.stack(floats).float(), expected.transpose(1, 2).cpu())
