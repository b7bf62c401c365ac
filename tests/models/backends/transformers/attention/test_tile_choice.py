"""Decode attention uses the tiles that a timer found fastest, if they are right."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.transformers.attention import tile_choice
from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.attention.parity_check import (
    CASES,
    LayerKind,
    ParityCheck,
)
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.backends.transformers.attention.tile_choice import (
    candidates,
    choose_decode_tiles,
    choose_fastest,
)
from stonechat_models.backends.transformers.attention.tile_sizes import Tiles, TileShape, TileSizes
from stonechat_models.backends.transformers.attention.triton_backend import FEW_SEQS, TritonBackend
from stonechat_models.backends.transformers.kv_cache import LayerKV
from stonechat_models.backends.transformers.verify import random_batch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = (2, 1, 64, 64)
PLAIN = AttentionSpec(scaling=0.125)
KIND = LayerKind(*SHAPE, PLAIN)
WINDOW = replace(KIND, spec=replace(PLAIN, sliding_window=20, sinks=torch.zeros(2)))
USUAL = Tiles().decode(TileShape(2, 64, torch.float16))
CHECK = ParityCheck(DEVICE, torch.float16, torch.float16, 16, [WINDOW, KIND])
HEAD_BYTES = 256


@pytest.fixture(autouse=True)
def short_steps(monkeypatch):
    monkeypatch.setattr(tile_choice, "NUM_SEQS", (1, 2))
    monkeypatch.setattr(tile_choice, "CONTEXT", 40)
    monkeypatch.setattr(tile_choice, "NUM_CALLS", (1, 1))
    monkeypatch.setattr(tile_choice, "CACHE_BYTES", 100_000)


class Favourites:
    """A timer that finds one tile fast for one sequence, and another for more."""

    def __init__(self, backend, few, many):
        self.backend = backend
        self.favourites = (few, many)

    def __call__(self, run):
        num_seqs = len(run())
        return 1.0 if self.backend.decode_tiles[SHAPE][0] == self.favourites[num_seqs > 1] else 2.0


@torch.inference_mode()
def test_the_fastest_tile_of_each_load_is_chosen():
    backend = TritonBackend(1)
    few, many = replace(USUAL, keys=32), replace(USUAL, num_warps=2)
    timings = choose_fastest(backend, CHECK, Favourites(backend, few, many))
    assert backend.decode_tiles == {SHAPE: (few, many)}
    assert [(t.num_seqs, t.tile) for t in timings] == [(1, few), (2, many)]
    assert [t.usual_seconds / t.seconds for t in timings] == [2, 2]
    assert "1 x 2 heads of 64 with 32 keys, 4 warps, 3 stages" in str(timings[0])
    query, kv = torch.zeros(1, 2, 64, dtype=torch.float16), cache(64)
    assert backend.decode_tile(query, kv, FEW_SEQS) == few
    assert backend.decode_tile(query, kv, FEW_SEQS + 1) == many
    CHECK.run(backend)


def test_other_shapes_keep_the_table():
    backend = TritonBackend()
    backend.decode_tiles[SHAPE] = (TileSizes(16, 16, 1, 1),) * 2
    query = torch.zeros(1, 2, 128, dtype=torch.float16)
    expected = Tiles().decode(TileShape(2, 128, torch.float16))
    assert backend.decode_tile(query, cache(128), 1) == expected


@torch.inference_mode()
def test_the_usual_tile_stays_if_none_is_faster():
    backend = TritonBackend(1)
    timings = choose_fastest(backend, CHECK, Favourites(backend, None, None))
    assert [t.tile for t in timings] == [USUAL, USUAL]


@pytest.mark.parametrize("problem", ["numbers", "compiler"])
@torch.inference_mode()
def test_a_tile_that_fails_is_not_chosen(problem, monkeypatch):
    backend = TritonBackend(1)
    wrong = replace(USUAL, keys=32)
    right = backend.attend

    def attend(query, kv, batch, spec):
        tile = backend.decode_tile(query, kv, batch.num_seqs)
        if tile == wrong and problem == "compiler":
            raise RuntimeError("out of shared memory")
        output = right(query, kv, batch, spec)
        # Only the windowed layer, without splits, is off.
        is_off = tile == wrong and spec.sinks is not None and batch.context_lens_list == [1]
        return output * 1.02 if is_off else output

    monkeypatch.setattr(backend, "attend", attend)
    timings = choose_fastest(backend, CHECK, Favourites(backend, wrong, wrong))
    assert [t.tile for t in timings] == [USUAL, USUAL]


@torch.inference_mode()
def test_what_serving_can_need_is_compiled_before_it_is_timed(monkeypatch):
    backend = TritonBackend(1)
    compiled, launched = set(), set()
    decode = backend._decode

    def record(query, kv, batch, spec, shape, tile, output, compiles_only=False):
        splits = backend.num_splits(batch.num_seqs, max(batch.context_lens_list), tile)
        variant = (tile, spec.sinks is not None, splits > 1)
        (compiled if compiles_only else launched).add(variant)
        decode(query, kv, batch, spec, shape, tile, output, compiles_only)

    monkeypatch.setattr(backend, "_decode", record)
    choose_fastest(backend, CHECK, lambda run: 1.0)
    tiles = candidates(USUAL, HEAD_BYTES)
    assert compiled == launched
    assert compiled == {(t, w, s) for t in tiles for w in (False, True) for s in (False, True)}


@torch.inference_mode()
@pytest.mark.parametrize("size", [64, 128])
def test_every_candidate_decodes_as_the_reference(size):
    half = torch.float16
    backend = TritonBackend(1)
    generator = torch.Generator().manual_seed(0)
    batch = random_batch(CASES["decode"], 16, generator)
    kv, query = cache(size, generator), torch.randn(4, 2, size, generator=generator).to(half)
    double = LayerKV(kv.keys.double(), kv.values.double(), 16)
    expected = SdpaBackend().attend(query.double(), double, batch, PLAIN)
    kv = LayerKV(kv.keys.to(DEVICE), kv.values.to(DEVICE), 16)
    usual = Tiles().decode(TileShape(2, size, half))
    tiles = candidates(usual, 4 * size)
    assert len(tiles) == (5 if size == 64 else 4)
    for tile in tiles:
        backend.decode_tiles[(2, 1, size, size)] = (tile, tile)
        actual = backend.attend(query.to(DEVICE), kv, batch.to(DEVICE), PLAIN)
        torch.testing.assert_close(actual.double().cpu(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("size", [16, 64, 128, 256])
def test_candidates_load_few_bytes(size):
    usual = Tiles().decode(TileShape(4, size, torch.bfloat16))
    tiles = candidates(usual, 4 * size)
    assert tiles[0] == usual
    assert len(set(tiles)) == len(tiles) <= 5
    for tile in tiles:
        assert tile.keys >= 32
        assert tile.keys * (tile.num_stages - 1) * 4 * size <= 64 << 10
        assert tile.rows == usual.rows


def test_only_half_precision_in_triton_on_cuda_is_timed(monkeypatch):
    monkeypatch.setattr(tile_choice, "choose_fastest", None)
    lines = []
    on_cuda = replace(CHECK, device=torch.device("cuda"))
    assert choose_decode_tiles(BatchedBackend(), on_cuda, lines.append) == []
    in_float32 = replace(on_cuda, dtype=torch.float32)
    assert choose_decode_tiles(TritonBackend(), in_float32, lines.append) == []
    on_cpu = replace(CHECK, device=torch.device("cpu"))
    assert choose_decode_tiles(TritonBackend(), on_cpu, lines.append) == []
    assert lines == []


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there the timer works")
def test_after_an_error_the_table_stays():
    backend = TritonBackend()
    backend.decode_tiles[SHAPE] = (USUAL, USUAL)
    lines = []
    on_cuda = replace(CHECK, device=torch.device("cuda"))
    assert choose_decode_tiles(backend, on_cuda, lines.append) == []
    assert backend.decode_tiles == {}
    assert "keeps its usual tiles" in lines[0]


def cache(size, generator=None):
    keys, values = torch.randn(2, 1024, 1, size, generator=generator).to(torch.float16)
    return LayerKV(keys, values, 16)
