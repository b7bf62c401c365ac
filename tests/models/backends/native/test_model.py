"""The native backend equals transformers, and a row has the same bits in any batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stonechat_models.backends.native import NativeModel, supports
from stonechat_models.backends.native.plan.spec import read_spec
from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, StepError
from tests.models.backends.native.native_helpers import (
    BLOCK_SIZE,
    BUILDS,
    FAMILIES,
    ROUNDING,
    STATEFUL,
    library_of,
    load_native,
    make_batch,
    make_model,
    random_ids,
    with_config,
)
from tests.nightly import nightly

IDS = random_ids(90)
BLOCKS = [7, 3, 11, 2, 20, 5]


def reference_logits(module: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = module(torch.tensor([ids]), use_cache=False).logits[0]
    return logits.float()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, NativeModel]:
    """A Llama in int8: activations are quantised too, and a row must still have the same bits."""
    module, files = make_model("llama", tmp_path_factory.mktemp("llama"))
    return module, load_native(files, quantize="int8")


@pytest.mark.parametrize("family", FAMILIES)
def test_float_models_equal_transformers(family: str, tmp_path: Path) -> None:
    module, files = make_model(family, tmp_path)
    assert supports(files, EngineConfig(model="x")) is None
    model = load_native(files)
    actual = model.forward(make_batch([(IDS, 0, BLOCKS)], all_rows=True))
    expected = reference_logits(module, IDS)
    # What remains is the rounding of queries, keys, probabilities and values to bfloat16.
    error = (actual - expected) / expected.std()
    # An expert may be chosen otherwise: then one row differs more.
    rows = error.square().mean(-1).sqrt()
    assert rows.median() < ROUNDING
    assert rows.max() < (0.2 if "moe" in family else 2 * ROUNDING)
    assert model.info.num_parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe", "qwen3_5_text", "lfm2"])
def test_final_hidden_states_equal_transformers(family: str, tmp_path: Path) -> None:
    module, files = make_model(family, tmp_path)
    model = load_native(files)
    with torch.inference_mode():
        expected = module.base_model(torch.tensor([IDS]), use_cache=False).last_hidden_state[0]
    batch = make_batch([(IDS, 0, BLOCKS)], all_rows=True)
    logits, hidden = model.forward_hidden(batch)
    assert hidden.shape == (len(IDS), model.hidden_size)
    error = (hidden - expected.float()) / expected.float().std()
    assert error.square().mean().sqrt() < ROUNDING
    assert torch.equal(logits, model.forward(batch)), "the logits keep their bits"


ISAS = {
    "x86-64": "generic",
    "haswell": "avx2",
    "alderlake": "avx2-vnni",
    "icelake-server": "avx512-vnni",
}


@pytest.mark.parametrize("architecture", BUILDS[1:])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "qwen3_5_text", "lfm2"])
def test_other_instruction_sets(
    architecture: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention and the rest of the model, with the instruction sets of older processors."""
    library = library_of(architecture)
    monkeypatch.setattr(
        "stonechat_models.backends.native.model.load_library", lambda progress: library
    )
    module, files = make_model(family, tmp_path)
    model = load_native(files)
    assert model.info.attention_backend == f"native-{library.isa}"
    assert library.isa == ISAS[architecture]
    actual = model.forward(make_batch([(IDS, 0, BLOCKS)], all_rows=True))
    expected = reference_logits(module, IDS)
    assert ((actual - expected) / expected.std()).square().mean().sqrt() < ROUNDING
    model.forward(make_batch([(IDS[:-1], 0, BLOCKS)]))
    rows = model.forward(make_batch([([3], 0, [40]), (IDS[-1:], len(IDS) - 1, BLOCKS)]))
    assert torch.equal(rows[1], actual[-1])


@pytest.mark.parametrize(("quantize", "bound"), [("int8", 0.05), ("int4", 0.6)])
@pytest.mark.parametrize("family", ["llama", "qwen3_5_text", *nightly("phi3", "gemma3", "lfm2")])
def test_quantised_models_are_close(
    family: str, quantize: str, bound: float, tmp_path: Path
) -> None:
    module, files = make_model(family, tmp_path)
    model = load_native(files, quantize=quantize)
    actual = model.forward(make_batch([(IDS, 0, BLOCKS)], all_rows=True))
    expected = reference_logits(module, IDS)
    if family in STATEFUL:  # products of products: PyTorch's quantised layers err as much
        bound *= 2
    assert (actual - expected).square().mean().sqrt() / expected.std() < bound
    assert model.info.quantization == quantize


def test_chunks_other_sequences_and_other_blocks_change_no_bit(
    llama: tuple[Any, NativeModel],
) -> None:
    model = llama[1]
    expected = model.forward(make_batch([(IDS, 0, BLOCKS)], all_rows=True))
    new_blocks, other_blocks = [40, 31, 33, 35, 37, 39], [50, 51, 52]
    for chunk in (1, 5, 16, 33):
        for start in range(0, len(IDS), chunk):
            tokens = IDS[start : start + chunk]
            batch = [(random_ids(37, chunk), 0, other_blocks), (tokens, start, new_blocks)]
            last = model.forward(make_batch(batch))[1]
            assert torch.equal(last, expected[start + len(tokens) - 1])


def test_a_decoding_row_has_the_same_bits_among_others(llama: tuple[Any, NativeModel]) -> None:
    model, length = llama[1], len(IDS)
    expected = model.forward(make_batch([(IDS, 0, BLOCKS)]))[0]
    sequence = (IDS[-1:], length - 1, BLOCKS)
    assert torch.equal(model.forward(make_batch([sequence]))[0], expected)
    for count in (3, 8, 31):
        others = [([i % 100], 0, [30 + i]) for i in range(count)]
        rows = model.forward(make_batch([*others, sequence]))
        assert torch.equal(rows[-1], expected)


@pytest.mark.parametrize(
    "family",
    ["gemma2", "qwen3_moe", "qwen3_5_text", "lfm2", *nightly("gemma3", "olmo2", "mixtral")],
)
def test_other_families_have_the_same_bits_in_any_batch(family: str, tmp_path: Path) -> None:
    """Also in chunks, among other sequences and with another number of threads."""
    _, files = make_model(family, tmp_path)
    model = load_native(files, quantize="int4")
    expected = model.forward(make_batch([(IDS, 0, BLOCKS)], all_rows=True))
    single = load_native(files, quantize="int4", threads=1)
    assert torch.equal(single.forward(make_batch([(IDS, 0, BLOCKS)], all_rows=True)), expected)
    new_blocks, other_blocks = [40, 31, 33, 35, 37, 39], [50, 51, 52]
    for chunk in (7, 32):
        for start in range(0, len(IDS), chunk):
            tokens = IDS[start : start + chunk]
            batch = [(random_ids(37, chunk), 0, other_blocks), (tokens, start, new_blocks)]
            last = model.forward(make_batch(batch))[1]
            assert torch.equal(last, expected[start + len(tokens) - 1])
    model.forward(make_batch([(IDS[:-1], 0, BLOCKS)]))
    others = [([i], 0, [30 + i]) for i in range(11)]
    rows = model.forward(make_batch([*others, (IDS[-1:], len(IDS) - 1, BLOCKS)]))
    assert torch.equal(rows[-1], expected[-1])


def test_merged_experts_equal_experts_in_separate_tensors(tmp_path: Path) -> None:
    """transformers holds all experts in one tensor; published files have one tensor per expert."""
    module, files = make_model("qwen3_moe-shares", tmp_path)
    expected = load_native(files).forward(make_batch([(IDS, 0, BLOCKS)]))
    merged_file = tmp_path / "merged.safetensors"
    tensors = {name: value.contiguous() for name, value in module.state_dict().items()}
    assert tensors["model.layers.0.mlp.experts.gate_up_proj"].dim() == 3
    save_file(tensors, merged_file)
    model = load_native(replace(files, weights=(merged_file,)))
    assert torch.equal(model.forward(make_batch([(IDS, 0, BLOCKS)])), expected)


def test_older_gemma_configs_say_the_same(tmp_path: Path) -> None:
    config = make_model("gemma3", tmp_path)[1].config.raw
    new_keys = {"rope_parameters", "layer_types", "head_dim", "tie_word_embeddings"}
    older_config = {key: value for key, value in config.items() if key not in new_keys}
    older_config |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 2}
    older_config["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    expected, actual = (read_spec(parse_config(c, "x")) for c in (config, older_config))
    only_global = {"full_attention": config["rope_parameters"]["full_attention"]}
    without_local = read_spec(parse_config({**config, "rope_parameters": only_global}, "x"))
    assert np.array_equal(without_local.inverse_frequencies, expected.inverse_frequencies)
    assert (actual.windows, actual.rotary_tables) == (expected.windows, expected.rotary_tables)
    assert (actual.head_dim, actual.tied) == (expected.head_dim, expected.tied)
    assert np.array_equal(actual.inverse_frequencies, expected.inverse_frequencies)


def test_threads_change_no_bit(tmp_path: Path) -> None:
    _, files = make_model("qwen3", tmp_path)
    results = []
    for threads in (1, 2, 3):
        model = load_native(files, quantize="int4", threads=threads)
        results.append(model.forward(make_batch([(IDS, 0, BLOCKS)], all_rows=True)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_larger_blocks_and_copies(tmp_path: Path) -> None:
    _, files = make_model("llama", tmp_path)
    model = load_native(files)
    expected = model.forward(make_batch([(IDS, 0, BLOCKS)]))
    model.copy_blocks([(b, b + 30) for b in BLOCKS])
    copies = [b + 30 for b in BLOCKS]
    step = ([5], len(IDS), BLOCKS)
    original = model.forward(make_batch([step]))
    assert torch.equal(model.forward(make_batch([([5], len(IDS), copies)])), original)
    model.allocate_kv_cache(8, 3 * BLOCK_SIZE)
    batch = make_batch([(IDS, 0, BLOCKS)])
    positions = torch.arange(len(IDS))
    batch.block_table = torch.tensor([[6, 1]], dtype=torch.int32)
    batch.slot_mapping = batch.block_table[0, positions // 48].long() * 48 + positions % 48
    assert torch.equal(model.forward(batch), expected)
    with pytest.raises(ModelLoadError):
        model.allocate_kv_cache(8, 24)


def test_tokens_outside_the_vocabulary_are_refused(llama: tuple[Any, NativeModel]) -> None:
    for token in (-1, llama[1].info.vocab_size):
        with pytest.raises(StepError):
            llama[1].forward(make_batch([([token], 0, [0])]))


@pytest.mark.parametrize(
    ("change", "settings", "reason"),
    [
        ({"model_type": "gpt_neox"}, {}, "gpt_neox"),
        ({"hidden_act": "gelu"}, {}, "gelu"),
        ({"use_bidirectional_attention": True}, {}, "both directions"),
        ({"is_causal": False}, {}, "both directions"),
        ({"is_causal": None}, {}, "both directions"),
        ({"head_dim": 40}, {}, "head_dim"),
        ({"partial_rotary_factor": 0.5}, {}, "part of each head"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, {}, "dynamic"),
        ({}, {"device": "cuda"}, "cuda"),
        ({}, {"block_size": 8}, "block size"),
        ({}, {"dtype": "bfloat16"}, "dtype"),
    ],
)
def test_unsupported_models_have_a_reason(
    change: dict[str, Any], settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    _, files = make_model("llama", tmp_path)
    refusal = supports(with_config(files, **change), EngineConfig(model="x", **settings))
    assert refusal is not None
    assert reason in refusal


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    _, files = make_model("llama", tmp_path)
    with pytest.raises(ModelLoadError, match=r"model\.layers\.4"):
        load_native(with_config(files, num_hidden_layers=5))
    with pytest.raises(ModelLoadError, match="expected"):
        load_native(with_config(files, intermediate_size=192))
