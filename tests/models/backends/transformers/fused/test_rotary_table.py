"""Tables of cosines and sines have the numbers of the models' own rotary modules."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from stonechat_models.backends.transformers.attention.interface import ProbeContext
from stonechat_models.backends.transformers.fused import rotary_table
from stonechat_models.backends.transformers.fused.replace import fuse_modules
from stonechat_models.backends.transformers.fused.rotary_table import RotaryTable, tabulate_rotary
from stonechat_models.backends.transformers.packing_check import check_packing, packed_forward
from tests.models.launches import WAITS, counted_launches
from tests.models.tiny_models import VOCAB_SIZE, tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTH = 64
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
LONGROPE = {
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0, 1.1, 1.3, 1.6],
        "long_factor": [1.0, 2.5, 6.0, 11.0],
        "original_max_position_embeddings": 16,
    },
}


def packed_model(family, **changes):
    module = tiny_model(family, **copy.deepcopy(changes)).to(DEVICE)
    check_packing(module, torch.device(DEVICE), VOCAB_SIZE)
    return module


@torch.inference_mode()
def logits(module, start=0):
    """The logits of two packed sequences; the second one begins at position `start`."""
    ids = torch.arange(9, device=DEVICE) * 23 % VOCAB_SIZE
    positions = torch.cat([torch.arange(5), torch.arange(4) + start]).to(DEVICE)
    return packed_forward(module, ids, positions, ProbeContext([0, 5, 9]))


@pytest.mark.parametrize(
    ("family", "changes", "num_tables"),
    [
        ("llama", {}, 1),
        ("llama", DYNAMIC, 1),
        ("gemma3", {}, 2),
        ("gpt_oss", {}, 1),
        ("gpt_neox", {}, 1),
    ],
    ids=["llama", "dynamic", "gemma3", "gpt_oss", "gpt_neox"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_logits(family, changes, num_tables, dtype):
    module = packed_model(family, **changes).to(dtype)
    before = logits(module, LENGTH - 4)
    assert tabulate_rotary(module, LENGTH) == 1
    assert torch.equal(logits(module, LENGTH - 4), before)
    tables = [m for m in module.modules() if isinstance(m, RotaryTable)]
    assert [len(list(table.buffers())) for table in tables] == [num_tables]
    assert not any("table" in name for name in module.state_dict())


@pytest.mark.parametrize(("length", "start"), [(16, 12), (64, 60)])
def test_longrope_has_one_set_of_factors(length, start):
    """The set of the context length that is served, as transformers chooses for its last token."""
    changes = copy.deepcopy(LONGROPE)
    if length > 16:  # as `long_config` does
        rope = changes["rope_parameters"]
        rope["short_factor"] = rope["long_factor"]
    module = packed_model("phi3", **changes)
    before = logits(module, start)
    assert tabulate_rotary(module, length) == 1
    assert torch.equal(logits(module, start), before)


@pytest.mark.parametrize("chunk", [16, rotary_table.CHUNK], ids=["original length", "longer"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [("phi3", LONGROPE), ("llama", {**DYNAMIC, "max_position_embeddings": 16})],
    ids=["longrope", "dynamic"],
)
def test_frequencies_that_depend_on_the_other_positions_are_not_tabulated(
    family, changes, chunk, monkeypatch
):
    """Whether or not the first call of the module goes beyond its original length, which is 16."""
    monkeypatch.setattr(rotary_table, "CHUNK", chunk)
    assert tabulate_rotary(packed_model(family, **changes), 64) == 0


def test_a_step_launches_one_kernel(monkeypatch):
    module = packed_model("llama", **DYNAMIC)
    before = logits(module)
    with counted_launches(monkeypatch) as own:
        logits(module)
    tabulate_rotary(module, LENGTH)
    with counted_launches(monkeypatch) as launches:
        after = logits(module)
    assert torch.equal(after, before)
    assert WAITS & own.keys()  # it compares the longest position on the host
    assert launches["embedding"] == own["embedding"] + 1
    assert not {"cos", "sin", *WAITS} & launches.keys()
    assert launches.total() < own.total() - 5


def test_fused_attention_reads_a_table():
    module = packed_model("llama", num_hidden_layers=1)
    before = logits(module, 40)
    assert fuse_modules(module)["FusedAttention"] == 1
    tabulate_rotary(module, LENGTH)
    torch.testing.assert_close(logits(module, 40), before, rtol=1e-4, atol=1e-4)


def test_a_step_that_runs_ahead_may_read_beyond_the_last_position():
    module = packed_model("llama")
    tabulate_rotary(module, LENGTH)
    assert torch.isfinite(logits(module, LENGTH)).all()


def test_too_large_a_table_is_not_made(monkeypatch):
    monkeypatch.setattr(rotary_table, "MAX_TABLE_BYTES", 2 * 8 * 4 * LENGTH)
    assert tabulate_rotary(packed_model("llama"), LENGTH + 1) == 0
    assert tabulate_rotary(packed_model("llama"), LENGTH) == 1


class Other(nn.Module):
    """A rotary module whose output is changed after the first call, which is the model's."""

    def __init__(self, own, change):
        super().__init__()
        self.own, self.change, self.num_calls = own, change, 0

    def forward(self, x, position_ids):
        self.num_calls += 1
        both = self.own(x, position_ids)
        return both if self.num_calls == 1 else self.change(*both)


@pytest.mark.parametrize(
    "change",
    [
        lambda cos, sin: (cos, sin / sin.shape[1]),  # depends on the other positions
        lambda cos, sin: torch.stack((cos, sin)),
        lambda cos, sin: (cos, sin, cos),
        lambda cos, sin: (cos, None),
        lambda cos, sin: (cos, sin[..., 1:]),
    ],
)
def test_other_modules_stay(change):
    module = packed_model("llama")
    module.model.rotary_emb = other = Other(module.model.rotary_emb, change)
    assert tabulate_rotary(module, 100) == 0
    assert module.model.rotary_emb is other
    assert other.num_calls > 1


def test_a_model_that_cannot_run_keeps_its_modules():
    module = packed_model("llama")
    module.model.layers[0].forward = None
    assert tabulate_rotary(module, LENGTH) == 0
