"""Compares a converted GGUF with transformers' independent reading of the same file."""

import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.checkpoint.gguf.config import config_of
from stonechat_models.checkpoint.gguf.convert import conversion_key, convert
from stonechat_models.checkpoint.gguf.reader import read_gguf, read_part
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from tests.models.tiny_gguf import HEAD_DIMS, TEMPLATE, vocabulary, write_tiny_gguf

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def silent(line: str) -> None:
    assert line


@pytest.mark.parametrize("architecture", sorted(HEAD_DIMS))
def test_logits_equal_those_of_transformers(architecture: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", architecture)
    config = EngineConfig(model=str(path))
    files = resolve_model(config, silent)
    module = load_module(files, config, CPU, torch.float32, attn_implementation="eager")
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits, expected = module(ids).logits, reference(ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight_type", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16"])
def test_quantised_weights_equal_those_of_transformers(weight_type: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama", weight_type)
    config = EngineConfig(model=str(path))
    module = load_module(resolve_model(config, silent), config, CPU, torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32
    )
    expected = reference.state_dict()
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_half_precision_is_the_rounded_float(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "qwen2", "Q8_0")
    config = EngineConfig(model=str(path))
    files = resolve_model(config, silent)
    whole = load_module(files, config, CPU, torch.float32).state_dict()
    half = load_module(files, config, CPU, torch.bfloat16).state_dict()
    assert all(torch.equal(half[name], whole[name].to(torch.bfloat16)) for name in whole)


def test_the_folder_describes_the_model(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama")
    folder = resolve_model(EngineConfig(model=str(path)), silent).folder
    tokens = vocabulary()[0]
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer_config["chat_template"] == TEMPLATE
    assert tokenizer_config["eos_token"] == "<|endoftext|>"
    generation = json.loads((folder / "generation_config.json").read_text())
    ends = [tokens.index("<|endoftext|>"), tokens.index("<|im_end|>")]
    assert generation["eos_token_id"] == ends


def test_recommended_sampling_that_no_request_may_have_is_left_out(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama")
    file = read_gguf(path)
    named = {"temp": 0.5, "top_k": 20, "top_p": 1.5, "min_p": "x", "penalty_repeat": float("nan")}
    file.metadata.update({f"general.sampling.{key}": value for key, value in named.items()})
    convert(file, tmp_path)
    content = json.loads((tmp_path / "generation_config.json").read_text())
    assert content["temperature"] == 0.5
    assert content["top_k"] == 20
    assert not content.keys() & {"top_p", "min_p", "repetition_penalty"}
    file.metadata.update({"general.sampling.top_k": 1.5, "general.sampling.temp": 3.0})
    convert(file, tmp_path)
    content = json.loads((tmp_path / "generation_config.json").read_text())
    assert not content.keys() & {"top_k", "temperature"}


def test_converting_happens_once_and_survives_a_rename(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama")
    lines: list[str] = []
    first = resolve_model(EngineConfig(model=str(path)), lines.append)
    assert len(lines) == 1
    new_path = path.rename(tmp_path / "moved.gguf")
    second = resolve_model(EngineConfig(model=str(new_path)), lines.append)
    assert second.folder == first.folder
    assert len(lines) == 1


def edit_in_place(path: Path, place: int) -> None:
    """Change one byte. Size and times stay the same."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_late_change_of_the_metadata_is_seen(tmp_path: Path) -> None:
    filler: dict[str, float | int | str] = {"filler": "x" * (8 << 20)}  # as a large vocabulary
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama", metadata=filler)
    before = resolve_model(EngineConfig(model=str(path)), silent).folder
    edit_in_place(path, path.read_bytes().index(TEMPLATE.encode()) + TEMPLATE.index("im_start"))
    after = resolve_model(EngineConfig(model=str(path)), silent).folder
    assert after != before
    templates = [
        json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
        for folder in (before, after)
    ]
    assert templates[0] == TEMPLATE != templates[1]


@pytest.mark.parametrize("num_parts", [1, 2])
def test_the_key_covers_every_byte_of_the_metadata(num_parts: int, tmp_path: Path) -> None:
    filler: dict[str, float | int | str] = {"filler": "x" * (3 << 20)}
    write_tiny_gguf(tmp_path / "t.gguf", "llama", metadata=filler, part_size=12 * (num_parts - 1))
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == num_parts
    keys = {conversion_key(parts)}
    places = range(2 << 20, 3 << 20, 1 << 15)
    for place in places:
        edit_in_place(parts[0], place)
        keys.add(conversion_key(parts))
    edit_in_place(parts[-1], parts[-1].read_bytes().index(b"blk.1"))  # the name of a tensor
    keys.add(conversion_key(parts))
    assert len(keys) == len(places) + 2


def test_the_key_covers_the_tensor_that_the_config_is_read_from(tmp_path: Path) -> None:
    path = tmp_path / "rope.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, size in (("a", 1 << 20), ("rope_freqs.weight", 8), ("b", 1 << 20)):
        writer.add_tensor(name, np.ones(size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    key = conversion_key([path])
    place = read_part(path).data_start + (4 << 20)
    edit_in_place(path, place)
    assert conversion_key([path]) != key
    edit_in_place(path, place)
    assert conversion_key([path]) == key


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"expert_count": 8}, "expert_used_count is missing"),
        ({"rope.scaling.type": "longrope"}, "longrope"),
        ({"rope.dimension_count": 8}, "part of each head"),
    ],
)
def test_a_model_that_would_run_wrongly_is_refused(
    metadata: dict[str, int | str], message: str, tmp_path: Path
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama", metadata=metadata)
    with pytest.raises(UnsupportedModelError, match=message):
        resolve_model(EngineConfig(model=str(path)), silent)


def test_a_missing_weight_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "t.gguf", "llama", skip=frozenset({"blk.1.ffn_up.weight"}))
    config = EngineConfig(model=str(path))
    files = resolve_model(config, silent)
    with pytest.raises(ModelLoadError, match=r"layers\.1\.mlp\.up_proj"):
        load_module(files, config, CPU, torch.float32)


def test_windows_of_newer_gemma_files_reach_the_config(tmp_path: Path) -> None:
    metadata: dict[str, float | int | str] = {
        "attention.sliding_window_pattern": 2,
        "rope.freq_base_swa": 20000.0,
    }
    config = config_of(read_gguf(write_tiny_gguf(tmp_path / "a.gguf", "gemma3", metadata=metadata)))
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    rope = config["rope_parameters"]
    assert isinstance(rope, dict)
    assert rope["sliding_attention"]["rope_theta"] == 20000.0
    assert rope["full_attention"]["rope_theta"] == 50000.0


def test_yarn_and_linear_scaling_reach_the_config(tmp_path: Path) -> None:
    scaling = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    scaling["rope.scaling.original_context_length"] = 64
    path = write_tiny_gguf(tmp_path / "yarn.gguf", "qwen2", metadata=scaling)
    assert config_of(read_gguf(path))["rope_parameters"] == {
        "rope_theta": 50000.0,
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
