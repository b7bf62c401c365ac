"""The FlashInfer backend, with a stand-in module that computes what FlashInfer documents."""

from types import SimpleNamespace

import pytest
import torch

from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.flashinfer_backend import FlashInferBackend
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.backends.transformers.kv_cache import LayerKV
from tests.models.backends.transformers.attention.fake_flashinfer import (
    BatchPrefillWithPagedKVCacheWrapper,
)
from tests.models.backends.transformers.attention.packed import packed_batch, with_runs

PREFILLS = [(5, 5), (20, 20), (2, 70), (13, 40), (16, 16)]
MIXED = [(1, 30), (7, 7), (1, 1), (12, 75), (1, 32)]
DECODES = [(1, 9), (1, 33)]
CPU = torch.device("cpu")


class CountingBackend(SdpaBackend):
    num_calls = 0

    def attend(self, *args):
        self.num_calls += 1
        return super().attend(*args)


@pytest.fixture
def wrappers():
    return []


@pytest.fixture
def backend(wrappers, monkeypatch):
    monkeypatch.setattr(
        "stonechat_models.backends.transformers.attention.flashinfer_backend.WORKSPACE_BYTES", 16
    )

    def wrapper(*args):
        wrappers.append(BatchPrefillWithPagedKVCacheWrapper(*args))
        return wrappers[-1]

    library = SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=wrapper)
    return FlashInferBackend(library, CountingBackend(), CPU)


def inputs(lengths, *, sizes=(64, 64), dtype=torch.bfloat16, block_size=16):
    generator = torch.Generator().manual_seed(4)
    num_blocks = sum(-(-c // block_size) for _, c in lengths) + 2
    batch = packed_batch(lengths, block_size, num_blocks, generator)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    query = random(4, batch.num_tokens, sizes[0]).transpose(0, 1)
    keys = random(num_blocks * block_size, 2, sizes[0])
    values = random(num_blocks * block_size, 2, sizes[1])
    return query, LayerKV(keys, values, block_size), batch


SPECS = {
    "plain": AttentionSpec(0.125),
    "window": AttentionSpec(0.2, sliding_window=11),
    "softcap": AttentionSpec(0.3, softcap=5.0),
    "both": AttentionSpec(0.3, sliding_window=1, softcap=5.0),
}


@pytest.mark.parametrize("lengths", [PREFILLS, MIXED], ids=["prefill", "mixed"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_results_equal_the_reference(backend, wrappers, lengths, spec):
    query, *cache_and_batch = inputs(lengths)
    actual = backend.attend(query, *cache_and_batch, spec)
    expected = SdpaBackend().attend(query.double(), *cache_and_batch, spec)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.double(), expected, atol=1e-2, rtol=1e-2)
    assert wrappers[0].num_runs == 1
    assert backend.fallback.num_calls == 0


def test_a_step_is_planned_once_for_all_layers_of_a_kind(backend, wrappers):
    arguments = inputs(MIXED)
    for spec in (SPECS["plain"], SPECS["window"], SPECS["plain"], SPECS["window"]):
        backend.attend(*arguments, spec)
    assert [(w.num_plans, w.num_runs) for w in wrappers] == [(1, 2), (1, 2)]
    backend.attend(*inputs(PREFILLS), SPECS["plain"])  # another step
    assert [(w.num_plans, w.num_runs) for w in wrappers] == [(2, 3), (1, 2)]


@pytest.mark.parametrize(
    ("changes", "spec"),
    [
        ({"dtype": torch.float32}, SPECS["plain"]),
        ({"sizes": (64, 32)}, SPECS["plain"]),
        ({"sizes": (80, 80)}, SPECS["plain"]),
        ({}, AttentionSpec(0.1, sinks=torch.zeros(4))),
        ({}, AttentionSpec(0.1, chunk_size=8)),
    ],
    ids=["float32", "other values", "head size", "sinks", "chunks"],
)
def test_unsupported_layers_use_the_fallback(backend, wrappers, changes, spec):
    backend.attend(*inputs(PREFILLS, **changes), spec)
    assert backend.fallback.num_calls == 1
    assert wrappers == []


def test_layers_in_which_tokens_see_later_ones_use_the_fallback(backend, wrappers):
    query, kv, batch = inputs(PREFILLS)
    batch = with_runs(batch, [[], [(2, 9)], [], [(30, 40)], []])
    actual = backend.attend(query, kv, batch, SPECS["window"])
    torch.testing.assert_close(actual, SdpaBackend().attend(query, kv, batch, SPECS["window"]))
    assert (backend.fallback.num_calls, wrappers) == (1, [])
    backend.attend(query, kv, batch.without_visible_ends(), SPECS["window"])
    assert len(wrappers) == 1


def test_decoding_uses_the_fallback(backend, wrappers):
    backend.attend(*inputs(DECODES), SPECS["plain"])
    assert backend.fallback.num_calls == 1
    assert wrappers == []


def test_another_block_size(backend):
    arguments = inputs(MIXED, block_size=4)
    actual = backend.attend(*arguments, SPECS["plain"])
    expected = SdpaBackend().attend(arguments[0].double(), *arguments[1:], SPECS["plain"])
    torch.testing.assert_close(actual.double(), expected, atol=1e-2, rtol=1e-2)
