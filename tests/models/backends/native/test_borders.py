"""Every number that reaches the compiled code is checked where it enters."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.native import NativeModel, supports
from stonechat_models.backends.native.bindings import Kind, load_library
from stonechat_models.backends.native.packing import MatrixSpec, PackedWeights
from stonechat_models.backends.native.plan.spec import read_spec
from stonechat_models.backends.native.tensor_source import Chunk
from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, StepError
from tests.models.backends.native.native_helpers import (
    BLOCK_SIZE,
    COMMON,
    FAMILIES,
    LLAMA3_ROPE,
    NUM_BLOCKS,
    VOCAB_SIZE,
    host_batch,
    load_native,
    make_batch,
    make_model,
    random_ids,
)

TYPES = {"gemma3": "gemma3_text"}
INF, NAN = float("inf"), float("nan")
LOCAL_ROPE = {"rope_type": "default", "rope_theta": 1e4}
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    name = family.partition("-")[0]
    return {**COMMON, "model_type": TYPES.get(name, name), **FAMILIES[family][1], **changes}


def llama3(**changes: Any) -> dict[str, Any]:
    return {"rope_parameters": {**LLAMA3_ROPE, **changes}}


BAD_CONFIGS: list[tuple[str, dict[str, Any]]] = [
    *(("llama", {key: value}) for key in SIZES for value in (0, -1, 2**31, 2**62, 1.5, "4", NAN)),
    *(("llama", {"vocab_size": value}) for value in (0, -1, 2**31, 2**32 + 3)),
    ("llama", {"num_hidden_layers": 1001}),
    ("llama", {"hidden_size": 130}),
    *(("llama", {"head_dim": value}) for value in (0, -32, 40, 288, 512, 2**32 + 32)),
    ("llama", {"num_attention_heads": 5, "head_dim": 32}),
    ("llama", {"num_attention_heads": 66, "num_key_value_heads": 2, "head_dim": 32}),
    ("llama", {"num_attention_heads": 2**27, "num_key_value_heads": 2**27, "head_dim": 32}),
    *(("llama", {"intermediate_size": value}) for value in (0, -32, 33, 2**31, None)),
    *(("llama", {"rms_norm_eps": value}) for value in (0.0, -1e-6, NAN, INF, "x")),
    *(("llama", {"partial_rotary_factor": f}) for f in (4.0, 1.01, 0.0, -0.5, 0.01, 0.1, NAN)),
    *(("llama", llama3(partial_rotary_factor=f)) for f in (4.0, 0.0, 0.03)),
    *(("llama", llama3(rope_theta=value)) for value in (0.0, -1.0, NAN, INF, "x")),
    *(("llama", llama3(factor=value)) for value in (0.0, -8.0, NAN, 1e-44, None)),
    ("llama", llama3(low_freq_factor=4.0)),
    ("llama", llama3(high_freq_factor=0.0)),
    ("llama", llama3(original_max_position_embeddings=0)),
    ("llama", {"rope_parameters": 5}),
    ("llama", {"rope_scaling": {"rope_type": "llama3"}}),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": "x"}}),
    *(("mistral", {"sliding_window": value}) for value in (-1, 2**31, 1.5, "x")),
    *(("phi3", {"partial_rotary_factor": value}) for value in (16.0, 0.0, 0.03)),
    *(("gemma2", {"query_pre_attn_scalar": value}) for value in (0, -1, NAN)),
    *(("gemma2", {"attn_logit_softcapping": value}) for value in (0.0, -4.0, NAN)),
    *(("gemma2", {"final_logit_softcapping": value}) for value in (0.0, -4.0, INF)),
    (
        "gemma3",
        {
            "rope_parameters": {
                "sliding_attention": {**LOCAL_ROPE, "partial_rotary_factor": 0.5},
                "full_attention": LOCAL_ROPE,
            }
        },
    ),
    *(("granite", {key: NAN}) for key in ("attention_multiplier", "residual_multiplier")),
    *(("granite", {"embedding_multiplier": value}) for value in (INF, "x")),
    *(("granite", {"logits_scaling": value}) for value in (0.0, -1.0, NAN)),
    *(("qwen3_moe", {"num_experts_per_tok": value}) for value in (0, -1, 11, 2**32 + 3)),
    *(("qwen3_moe", {"moe_intermediate_size": value}) for value in (0, -32, 33, 2**31)),
    ("qwen3_moe", {"num_experts": 2**31}),
    ("qwen3_moe", {"decoder_sparse_step": 0}),
    *(("mixtral", {"num_local_experts": value}) for value in (0, -1, 1, 2**31)),
    *(("mixtral", {"intermediate_size": value}) for value in (0, -32, 33)),
    *(
        ("qwen3_5_text", {f"linear_{part}_head_dim": value})
        for part in ("key", "value")
        for value in (0, -32, 16, 40, 288, 2**31)
    ),
    *(("qwen3_5_text", {"linear_num_value_heads": value}) for value in (0, 1, 3, -2, 2**27, 1.5)),
    *(("qwen3_5_text", {"linear_num_key_heads": value}) for value in (0, 3, -2, 2**30)),
    *(("qwen3_5_text", {"linear_conv_kernel_dim": value}) for value in (1, 0, -4, 9, 2**31, "x")),
    *(("qwen3_5_text", {"layer_types": [kind] * 4}) for kind in ("sliding_attention", "conv", "")),
    ("qwen3_5_text", {"layer_types": None, "full_attention_interval": 0}),
    ("qwen3_5_text", {"layer_types": ["linear_attention"]}),
    ("qwen3_5_text", {"hidden_act": "gelu_pytorch_tanh"}),
    ("qwen3_5_text", {"partial_rotary_factor": 1.01}),
    *(("qwen3_5_moe_text", {"shared_expert_intermediate_size": v}) for v in (0, -32, 33, 2**31)),
    *(("qwen3_5_moe_text", {"num_experts_per_tok": value}) for value in (0, -1, 11)),
    *(("qwen3_5_moe_text", {"moe_intermediate_size": value}) for value in (0, -32, 33, 2**31)),
    *(("lfm2", {"conv_L_cache": value}) for value in (1, 0, -3, 9, 2**31, 2.5)),
    *(("lfm2", {"layer_types": [kind] * 4}) for kind in ("linear_attention", "sliding_attention")),
    *(("lfm2", {"layer_types": None, "full_attn_idxs": value}) for value in ("x", [0.5])),
    *(("lfm2", {"block_ffn_dim_multiplier": value}) for value in (0.0, -1.0, 1e30, NAN, "x")),
    *(("lfm2", {"block_multiple_of": value}) for value in (0, -1, 33, 2**31)),
    *(("lfm2", {"block_ff_dim": value}) for value in (0, -1, 2**31, "x")),
    ("lfm2", {"block_auto_adjust_ff_dim": False, "block_ff_dim": 33}),
    *(("lfm2", {"norm_eps": value}) for value in (0.0, -1e-5, NAN)),
    ("lfm2", {"tie_embedding": "x"}),
]


@pytest.mark.parametrize(
    ("family", "changes"), BAD_CONFIGS, ids=[f"{f}-{c}"[:80] for f, c in BAD_CONFIGS]
)
def test_numbers_that_the_library_cannot_hold_are_refused(
    family: str, changes: dict[str, Any]
) -> None:
    read_spec(parse_config(config_of(family), "config.json"))
    with pytest.raises(ModelLoadError) as error:
        read_spec(parse_config(config_of(family, **changes), "config.json"))
    assert "\n" not in str(error.value)


def test_a_rotary_embedding_may_cover_a_part_of_each_head_or_all_of_it() -> None:
    for factor, rotary_dim in ((1.0, 32), (0.5, 16), (0.0625, 2)):
        config = config_of("phi3", partial_rotary_factor=factor)
        spec = read_spec(parse_config(config, "config.json"))
        assert spec.inverse_frequencies.shape == (1, rotary_dim // 2)


def test_supports_says_why_a_config_is_refused(tmp_path: Path) -> None:
    _, files = make_model("llama", tmp_path)
    refused = replace(files, config=replace(files.config, head_dim=320))
    assert supports(refused, EngineConfig(model="x")) == "its head_dim is above 256"


def test_no_frequencies_of_too_large_a_head_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be gigabytes. A head of the largest size passes."""
    assert read_spec(parse_config(config_of("llama", head_dim=256), "x")).head_dim == 256
    computes = "stonechat_models.backends.native.plan.spec.rotary_frequencies"
    monkeypatch.setattr(computes, lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(ModelLoadError, match="head_dim is above 256"):
        read_spec(parse_config(config_of("llama", head_dim=1 << 30), "x"))


# ---------------------------------------------------------------- a step


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NativeModel:
    return load_native(make_model("llama", tmp_path_factory.mktemp("llama"))[1])


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> NativeModel:
    return load_native(make_model("qwen3_5_text", tmp_path_factory.mktemp("stateful"))[1])


def good_batch() -> ForwardBatch:
    return make_batch([(random_ids(20), 0, [3, 60]), ([5], 16, [NUM_BLOCKS - 1, 9])])


def put(name: str, index: Any, value: int) -> Callable[[ForwardBatch], None]:
    def change(batch: ForwardBatch) -> None:
        getattr(batch, name)[index] = value

    return change


SLOTS = NUM_BLOCKS * BLOCK_SIZE
BAD_STEPS = {
    "a token is outside": [put("token_ids", i, v) for i, v in ((0, -1), (20, VOCAB_SIZE))]
    + [put("token_ids", 3, 2**32), put("token_ids", 3, -(2**63))],
    "position": [put("positions", i, v) for i, v in ((0, -1), (20, 32), (7, 2**40))],
    "slot": [put("slot_mapping", i, v) for i, v in ((0, -1), (20, SLOTS), (3, 2**40))],
    "no such block": [
        put("block_table", i, v)
        for i, v in (((0, 0), -1), ((1, 1), NUM_BLOCKS), ((0, 1), 2**31 - 1))
    ],
    "no such row": [put("logits_index", i, v) for i, v in ((0, -1), (1, 21), (1, 2**40))],
    "cover the tokens": [
        put("query_start", i, v) for i, v in ((0, 1), (1, -1), (1, 22), (2, 20), (2, 22))
    ],
}


@pytest.mark.parametrize(
    ("problem", "change"), [(problem, c) for problem, changes in BAD_STEPS.items() for c in changes]
)
def test_a_step_that_leads_outside_is_refused(
    problem: str, change: Callable[[ForwardBatch], None], model: NativeModel
) -> None:
    expected = model.forward(good_batch())
    batch = good_batch()
    change(batch)
    with pytest.raises(StepError, match=problem):
        model.forward(batch)
    assert torch.equal(model.forward(good_batch()), expected)


@pytest.mark.parametrize(
    ("slots", "problem"),
    [
        *(([3, slot], "no such state") for slot in (-1, NUM_BLOCKS, 2**40, -(2**63))),
        ([-1, 3], "no such state"),
        ([3, 3], "two sequences have one state"),
        *((slots, "no states") for slots in ((), [3], [3, 4, 5])),
    ],
)
def test_a_step_with_other_states_is_refused(
    slots: list[int], problem: str, stateful: NativeModel
) -> None:
    expected = stateful.forward(good_batch())
    batch = good_batch()
    batch.state_slots = slots
    with pytest.raises(StepError, match=problem):
        stateful.forward(batch)
    # The second sequence of the batch goes on from its state, and so has to begin anew.
    assert torch.equal(stateful.forward(good_batch())[0], expected[0])


def test_a_step_before_there_are_states_is_refused(tmp_path: Path) -> None:
    files = make_model("lfm2", tmp_path)[1]
    model = NativeModel.load(files, EngineConfig(model="x", threads=1), lambda line: None)
    model.allocate_kv_cache(NUM_BLOCKS, BLOCK_SIZE)
    with pytest.raises(StepError, match="no such state"):
        model.forward(host_batch(good_batch()))


def test_a_step_before_there_is_a_cache_is_refused(tmp_path: Path) -> None:
    files = make_model("llama", tmp_path)[1]
    config = EngineConfig(model="x", threads=1)
    model = NativeModel.load(files, config, lambda line: None)
    with pytest.raises(StepError):
        model.forward(host_batch(good_batch()))
    with pytest.raises(ModelLoadError, match="too large"):
        model.allocate_kv_cache(2**27, BLOCK_SIZE)


# ---------------------------------------------------------------- rows of a file


class OneChunk:
    """Rows whose only chunk is given."""

    name, type_name, n, k = "w", "F32", 4, 32

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk

    def chunks(self, kind: Kind) -> list[Chunk]:
        return [self._chunk]

    def release(self) -> None: ...


@pytest.mark.parametrize(
    ("index", "width", "is_good"),
    [
        ([0, 1, 2, 3], 128, True),
        ([0, 1, 2, 4], 128, False),
        ([0, -1, 2, 3], 128, False),
        ([0, 1, 2, 3], 124, False),
        ([0, 1, 2, 3], 132, False),
        ([0, 1, 2], 128, False),
        ([0, 1, 2, 3, 3], 128, False),
        ([], 128, False),
    ],
)
def test_rows_lie_in_their_tensor(index: list[int], width: int, is_good: bool) -> None:
    data = np.zeros((4, width), dtype=np.uint8)
    rows: Any = OneChunk(Chunk(Kind.F32, data, np.array(index, dtype=np.int32)))
    spec = MatrixSpec(rows, Kind.F32)
    if is_good:
        PackedWeights(load_library(), [spec], 1)
        return
    with pytest.raises(ModelLoadError, match="do not lie in their tensor"):
        PackedWeights(load_library(), [spec], 1)
