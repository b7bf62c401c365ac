"""Layers with recurrent states: right over steps, in any slot, and under the real scheduler."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from stonechat_models.backends.native import NativeModel, footprint, supports
from stonechat_models.backends.native.plan.spec import read_spec
from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.checkpoint.hf_config import parse_config, read_config
from stonechat_models.checkpoint.resolve import ModelFiles, resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.engine.engine import Engine
from stonechat_models.types import SamplingParams
from tests.models import converted_gguf
from tests.models.backends.native.native_helpers import (
    BLOCK_SIZE,
    COMMON,
    DELTA_RULE,
    ROUNDING,
    STATEFUL,
    YARN_ROPE,
    load_native,
    make_batch,
    make_model,
    random_ids,
    with_config,
)
from tests.models.engines import Generated, add, greedy, run

BLOCKS = list(range(3, 23))
NUM_TOKENS = 40
THIRD_HAS_ATTENTION = [*["linear_attention"] * 2, "full_attention", "linear_attention"]
PROMPTS = [random_ids(n, seed=n) for n in (1, 3, 20, 33, 50, 5)]
PROMPTS.append([*PROMPTS[4][:40], 7, 8])


@pytest.fixture(scope="module", params=STATEFUL)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A module in transformers, and its files."""
    return make_model(request.param, tmp_path_factory.mktemp("stateful"))


def logits_of(module: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = module(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits.float()


def test_a_long_prompt_and_decoding_after_it(pair: Any) -> None:
    """The prompt is longer than a block of rows, and ends in the middle of every tile."""
    module, files = pair
    ids = random_ids(301)
    model = load_native(files)
    rows = [model.forward(make_batch([(ids[:277], 0, BLOCKS)], all_rows=True))]
    rows += [model.forward(make_batch([(ids[i : i + 1], i, BLOCKS)])) for i in range(277, 301)]
    expected = logits_of(module, ids)
    error = ((torch.cat(rows) - expected) / expected.std()).square().mean(dim=1).sqrt()
    if "moe" in files.name:  # rows that nearly tie between two experts differ more
        assert error.median() < ROUNDING
    else:
        assert error.max() < 3 * ROUNDING
        assert error.mean() < ROUNDING


def test_chunks_and_other_sequences_change_no_bit(pair: Any) -> None:
    _, files = pair
    model = load_native(files, quantize="int8")
    ids = random_ids(75)
    expected = model.forward(make_batch([(ids, 0, BLOCKS)], all_rows=True))
    for threads, sizes in ((1, (1,) * 75), (3, (2, 1, 30, 8, 9, 1, 24)), (2, (64, 11))):
        again = load_native(files, quantize="int8", threads=threads)
        start = 0
        for i, size in enumerate(sizes):
            others = [(random_ids(5 + i % 20, seed=i), 0, [40 + j, 50 + j]) for j in range(i % 3)]
            step = (ids[start : start + size], start, BLOCKS)
            row = again.forward(make_batch([*others, step]))[-1]
            start += size
            assert torch.equal(row, expected[start - 1])


def test_a_sequence_begins_empty_in_a_used_slot(pair: Any) -> None:
    _, files = pair
    model = load_native(files)
    ids = random_ids(20)
    expected = model.forward(make_batch([(ids, 0, BLOCKS)], all_rows=True))
    assert torch.equal(model.forward(make_batch([(ids, 0, BLOCKS)], all_rows=True)), expected)
    batch = make_batch([(ids, 0, BLOCKS)], all_rows=True)
    batch.state_slots = [63]
    assert torch.equal(model.forward(batch), expected)


def test_states_are_copied_in_order(pair: Any) -> None:
    _, files = pair
    model = load_native(files)
    ids, others = random_ids(33), random_ids(33, seed=1)
    expected = model.forward(make_batch([(ids, 0, BLOCKS)]))
    model.forward(make_batch([(ids[:-1], 0, BLOCKS), (others, 0, [30, 31, 32])]))
    model.copy_states([(3, 50), (30, 3), (50, 51)])
    batch = make_batch([(ids[-1:], 32, BLOCKS)])
    assert not torch.equal(model.forward(batch), expected)  # slot 3 has the other state
    batch.state_slots = [51]
    assert torch.equal(model.forward(batch), expected)
    batch.state_slots = [50]
    assert torch.equal(model.forward(batch), expected)


def test_the_state_has_the_size_that_is_planned(pair: Any) -> None:
    _, files = pair
    model = load_native(files)
    assert model.info.keeps_state
    assert model.info.exact_chunks
    assert model._states.num_bytes == 64 * model.info.state_bytes
    spec = read_spec(files.config)
    num_attention = sum(spec.mixer(i) == 0 for i in range(spec.num_layers))
    assert 0 < num_attention < spec.num_layers
    assert model.info.kv_bytes_per_token == 2 * 2 * num_attention * spec.kv_size


def test_a_model_without_attention(tmp_path: Path) -> None:
    """No key is cached, and blocks are still counted."""
    module, files = make_model("lfm2", tmp_path)
    config = type(module.config)(**{**COMMON, "layer_types": ["conv"] * 4})
    bare = type(module)(config).eval()
    bare.save_pretrained(tmp_path / "bare")
    files = replace(
        files,
        config=read_config(tmp_path / "bare" / "config.json"),
        weights=(tmp_path / "bare" / "model.safetensors",),
    )
    ids = random_ids(40)
    model = load_native(files)
    assert model.info.kv_bytes_per_token == 0
    actual = model.forward(make_batch([(ids, 0, BLOCKS)], all_rows=True))
    expected = logits_of(bare, ids)
    assert ((actual - expected) / expected.std()).abs().max() < 1e-4


# ---------------------------------------------------------------- the engine


def make_engine(
    files: ModelFiles, *, num_blocks: int = 64, prefix_caching: bool = True, **limits: Any
) -> Engine:
    model = NativeModel.load(files, EngineConfig(model="x", threads=2), lambda line: None)
    limits = {"max_num_seqs": 4, "max_batch_tokens": 23, "max_model_len": 96, **limits}
    model.info = replace(model.info, num_state_slots=limits["max_num_seqs"] + 6, **limits)
    model.allocate_kv_cache(num_blocks, BLOCK_SIZE)
    return Engine(
        model,
        model.new_sampler(),
        eos_token_ids=frozenset(),
        device=None,
        prefix_caching=prefix_caching,
    )


def params_of(i: int) -> SamplingParams:
    """Greedy, or drawn with a seed: the third prompt has three choices."""
    if i % 2 == 0:
        return greedy(NUM_TOKENS, n=3 if i == 2 else 1)
    return SamplingParams(temperature=1.0, seed=i, max_tokens=NUM_TOKENS, top_logprobs=5)


def results_of(engine: Engine, indices: list[int], name: str = "") -> dict[Any, Generated]:
    for i in indices:
        add(engine, f"{name}{i}", PROMPTS[i], params_of(i))
    return run(engine)


def test_the_engine_gives_the_same_bits_alone_and_in_company(pair: Any) -> None:
    """Mixed batches, chunks, cache hits, several choices, and preemption."""
    module, files = pair
    expected: dict[Any, Generated] = {}
    alone = make_engine(files, prefix_caching=False, max_batch_tokens=96)
    for i in range(len(PROMPTS)):
        expected |= results_of(alone, [i])
    engine = make_engine(files, num_blocks=9)
    everything = list(range(len(PROMPTS)))
    first = results_of(engine, everything)
    again = results_of(engine, everything, "again")
    for (name, choice), result in expected.items():
        for other in (first[name, choice], again[f"again{name}", choice]):
            assert other.error is None
            assert other.token_ids == result.token_ids
            assert other.logprobs == result.logprobs
    assert engine.stats().num_preemptions > 0
    assert any(result.num_cached_tokens for result in again.values())
    for i in (0, 2, 4):
        token_ids = expected[str(i), 0].token_ids
        rows = torch.log_softmax(logits_of(module, PROMPTS[i] + token_ids).double(), dim=-1)
        rows = rows[len(PROMPTS[i]) - 1 : -1]
        chosen = rows.gather(1, torch.tensor(token_ids).unsqueeze(1)).squeeze(1)
        got = torch.tensor([entry.logprob for entry in expected[str(i), 0].logprobs])
        bound = 0.2 if "moe" in files.name else 0.05  # another expert
        assert (got - chosen).abs().max() < bound
        assert (rows.amax(dim=1) - chosen).max() < bound


# ---------------------------------------------------------------- configs and files


@cache
def composite_config(*, mixture: bool = False) -> Any:
    from transformers import Qwen3_5Config, Qwen3_5MoeConfig

    text = {**COMMON, **DELTA_RULE, "head_dim": 64}
    if mixture:
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        text |= {"shared_expert_intermediate_size": 64}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
    vision |= {"out_hidden_size": 128, "num_position_embeddings": 16}
    config_class = Qwen3_5MoeConfig if mixture else Qwen3_5Config
    return config_class(text_config=text, vision_config=vision)


@pytest.mark.parametrize("mixture", [False, True])
def test_the_text_part_of_a_model_for_images(mixture: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(3)
    module = AutoModelForImageTextToText.from_config(
        composite_config(mixture=mixture), attn_implementation="eager"
    ).eval()
    module.save_pretrained(tmp_path)
    weights = tuple(tmp_path.glob("*.safetensors"))
    files = ModelFiles("x", tmp_path, read_config(tmp_path / "config.json"), None, weights)
    assert supports(files, EngineConfig(model="x")) is None
    model = load_native(files)
    ids = random_ids(60)
    expected = logits_of(module, ids)
    actual = model.forward(make_batch([(ids, 0, BLOCKS)], all_rows=True))
    assert ((actual - expected) / expected.std()).square().mean().sqrt() < ROUNDING
    text = sum(p.numel() for name, p in module.named_parameters() if ".visual." not in name)
    assert model.info.num_parameters == text


def test_rotary_scaling_of_a_model_for_images() -> None:
    """YaRN is computed by transformers, which needs the config of the text part."""
    config = composite_config().to_dict()
    config["text_config"]["rope_parameters"] = {**YARN_ROPE, "partial_rotary_factor": 0.25}
    spec = read_spec(parse_config(config, "config.json"))
    assert spec.inverse_frequencies.shape == (1, 8)


def test_qwen3_5_rotates_a_quarter_of_a_head_unless_its_config_says_more() -> None:
    config = {**COMMON, **DELTA_RULE, "model_type": "qwen3_5_text", "head_dim": 64}
    for changes, half in (
        ({}, 8),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e7}}, 8),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, 16),
        ({"partial_rotary_factor": 1.0}, 32),
    ):
        spec = read_spec(parse_config({**config, **changes}, "config.json"))
        assert spec.inverse_frequencies.shape == (1, half)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block_multiple_of": 64},
        {"block_ffn_dim_multiplier": 1.7, "block_multiple_of": 32},
        {"block_auto_adjust_ff_dim": False},
        {"block_ff_dim": 448},
        {"tie_embedding": True, "tie_word_embeddings": False},
        {"tie_embedding": False, "tie_word_embeddings": True},
        {"layer_types": None},
        {"layer_types": None, "full_attn_idxs": [0, 3]},
    ],
)
def test_lfm2_configs_mean_what_they_do_in_transformers(changes: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, Lfm2Config

    values = {**COMMON, "layer_types": ["conv"] * 3 + ["full_attention"], **changes}
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(Lfm2Config(**values))
    spec = read_spec(parse_config({**values, "model_type": "lfm2"}, "config.json"))
    layers = module.model.layers
    assert spec.intermediate_size == layers[0].feed_forward.w1.out_features
    assert spec.tied is module.config.tie_word_embeddings
    assert [spec.mixer(i) == 0 for i in range(4)] == [layer.is_attention_layer for layer in layers]


def test_an_activation_that_is_not_computed_is_refused(pair: Any) -> None:
    changed = with_config(pair[1], hidden_act="gelu")
    assert "gelu" in str(supports(changed, EngineConfig(model="x")))


add_tensor = converted_gguf.add_tensor


def with_flat_gates(writer: Any, name: str, values: torch.Tensor, kind: Any) -> None:
    add_tensor(writer, name, values.flatten() if "gate_inp_shexp" in name else values, kind)


@pytest.mark.usefixtures("model_cache")
@pytest.mark.parametrize(
    ("family", "architecture", "changes"),
    [
        ("qwen3_5_text", "qwen35", {"layer_types": THIRD_HAS_ATTENTION}),
        ("qwen3_5_moe_text", "qwen35moe", {"layer_types": THIRD_HAS_ATTENTION}),
        ("lfm2", "lfm2", {"block_auto_adjust_ff_dim": False}),
    ],
)
@pytest.mark.parametrize(("weights", "bound"), [("F32", ROUNDING), ("Q8_0", 0.1)])
def test_gguf_files(
    family: str,
    architecture: str,
    changes: dict[str, Any],
    weights: str,
    bound: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their value heads lie in another order, their decays are no logarithms."""
    if weights == "Q8_0":  # the other form in which files have the shared expert's gate
        monkeypatch.setattr(converted_gguf, "add_tensor", with_flat_gates)
    module, _ = make_model(family, tmp_path / "saved", vocab_size=300, **changes)
    kind = gguf.GGMLQuantizationType[weights]
    path = converted_gguf.write_converted(module, architecture, tmp_path / "x.gguf", kind)
    config = EngineConfig(model=str(path), threads=2)
    files = resolve_model(config, lambda line: None)
    assert supports(files, config) is None
    model = load_native(files)
    ids = random_ids(60)
    expected = logits_of(module, ids)
    actual = model.forward(make_batch([(ids, 0, BLOCKS)], all_rows=True))
    assert ((actual - expected) / expected.std()).square().mean().sqrt() < bound
    size = footprint(read_headers(config, lambda line: None), config)
    assert size.weight_bytes == model.info.weight_bytes
    assert size.state_bytes == model.info.state_bytes
