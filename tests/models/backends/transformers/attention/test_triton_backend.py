"""The Triton kernels against the reference backend in float64.

Without CUDA they run in Triton's interpreter. That shows that their results are right, but not that
they compile, or how fast they are.
"""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.quantization.device_support import FP8_KV_CAPABILITY
from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.backends.transformers.attention.tile_sizes import TileSizes
from stonechat_models.backends.transformers.attention.triton_backend import TritonBackend
from stonechat_models.backends.transformers.kv_cache import LayerKV
from tests.models.backends.transformers.attention.packed import decode_rows, packed_batch, with_runs
from tests.nightly import nightly

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DECODES = [(1, 1), (1, 7), (1, 65), (1, 130), (1, 64)]
PREFILLS = [(5, 5), (40, 40), (2, 70), (33, 90), (3, 160)]
MIXED = [(1, 30), (7, 7), (1, 1), (20, 75), (1, 100)]


def check(
    lengths,
    *,
    heads=(4, 2),
    sizes=(64, 64),
    block_size=16,
    dtype=torch.float32,
    kv_dtype=None,
    num_multiprocessors=8,
    seed=0,
    runs=None,
    **spec,
):
    generator = torch.Generator().manual_seed(seed)
    num_blocks = sum(-(-c // block_size) for _, c in lengths) + 3
    batch = packed_batch(lengths, block_size, num_blocks, generator, DEVICE)
    if runs is not None:
        batch = with_runs(batch, runs)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)

    # Laid out [H, T, D], as a model's projections are after RoPE.
    query = random(heads[0], batch.num_tokens, sizes[0]).transpose(0, 1)
    keys = random(num_blocks * block_size, heads[1], sizes[0]).to(kv_dtype or dtype)
    values = random(num_blocks * block_size, heads[1], sizes[1]).to(kv_dtype or dtype)
    if "sinks" in spec:
        spec["sinks"] = random(heads[0])
    full_spec = AttentionSpec(**{"scaling": sizes[0] ** -0.5, **spec})
    kv = LayerKV(keys, values, block_size)
    actual = TritonBackend(num_multiprocessors).attend(query, kv, batch, full_spec)
    if full_spec.sinks is not None:
        full_spec = replace(full_spec, sinks=full_spec.sinks.double())
    expected = SdpaBackend().attend(query.double(), kv, batch, full_spec)
    assert actual.dtype == dtype
    assert actual.is_contiguous()
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[dtype], float(error)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("lengths", [DECODES, PREFILLS, MIXED], ids=["decode", "prefill", "mixed"])
def test_dtypes(lengths, dtype):
    check(lengths, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, *nightly(torch.float16)], ids=str)
@pytest.mark.parametrize("lengths", [DECODES, PREFILLS], ids=["decode", "prefill"])
def test_fp8_keys_and_values(lengths, dtype):
    if DEVICE == "cuda" and torch.cuda.get_device_capability() < FP8_KV_CAPABILITY:
        pytest.skip("Triton converts no float8 here")
    check(lengths, dtype=dtype, kv_dtype=torch.float8_e4m3fn)


@pytest.mark.parametrize("heads", [(4, 4), (9, 3), (7, 1), (8, 2), (20, 1)], ids=str)
def test_head_groups(heads):
    check(MIXED, heads=heads, sizes=(32, 32))


@pytest.mark.parametrize("sizes", [(16, 16), (80, 80), (96, 96), (128, 128), (72, 40), (256, 256)])
def test_head_sizes(sizes):
    check(MIXED, sizes=sizes, heads=(2, 1))


@pytest.mark.parametrize("block_size", [1, 4, 24, 32, 128])
def test_block_sizes(block_size):
    check(MIXED, block_size=block_size, sizes=(32, 32))


@pytest.mark.parametrize("window", [1, 6, 32, 33, 500])
def test_sliding_window(window):
    check(MIXED, sliding_window=window, sizes=(32, 32))


@pytest.mark.parametrize("chunk", [1, 7, 32, 45, 500])
def test_chunks(chunk):
    check(MIXED, chunk_size=chunk, sizes=(32, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "spec", [{"sliding_window": 20}, {"chunk_size": 33, "softcap": 3.0, "sinks": True}], ids=str
)
def test_tokens_of_images_see_those_after_them(spec, dtype):
    runs = [[(0, 64), (70, 71), (80, 90)], [], [(20, 31)], [(100, 140), (159, 160)]]
    check([(90, 90), (1, 30), (7, 35), (50, 160)], dtype=dtype, runs=runs, **spec)


@pytest.mark.parametrize(
    "spec",
    [
        {"softcap": 3.0},
        {"sinks": True},
        {"scaling": 1.0},
        {"softcap": 2.0, "sinks": True, "sliding_window": 20, "scaling": 0.3},
        {"sliding_window": 20, "chunk_size": 33},
    ],
    ids=lambda spec: "-".join(spec),
)
@pytest.mark.parametrize("lengths", [DECODES, PREFILLS], ids=["decode", "prefill"])
def test_features_of_layers(lengths, spec):
    check(lengths, sizes=(32, 32), **spec)


@pytest.mark.parametrize("num_multiprocessors", [1, 2, 32, 500])
def test_any_number_of_splits(num_multiprocessors):
    check(
        [(1, 300)],
        num_multiprocessors=num_multiprocessors,
        heads=(2, 1),
        sizes=(32, 32),
        sinks=True,
    )


def test_steps_in_turn_share_counters():
    """Each leaves them as it finds them: at zero, with padding and longer steps between."""
    backend = TritonBackend(num_multiprocessors=32)
    for contexts in ([300], [70, 0, 129], [300]):
        generator = torch.Generator().manual_seed(0)
        batch = packed_batch([(1, c) for c in contexts], 16, 40, generator, DEVICE)
        query = torch.randn(len(contexts), 4, 32, generator=generator).to(DEVICE)
        cache = torch.randn(640, 2, 32, generator=generator).to(DEVICE)
        kv, spec = LayerKV(cache, cache, 16), AttentionSpec(scaling=0.2)
        actual = backend.attend(query, kv, batch, spec)
        rows = [i for i, context in enumerate(contexts) if context]
        expected = SdpaBackend().attend(query[rows].double(), kv, decode_rows(batch, rows), spec)
        error = (actual[rows].double() - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE[torch.float32]
        assert (backend._num_done[query.device] == 0).all()


def test_number_of_splits():
    backend = TritonBackend(num_multiprocessors=132)
    tile = TileSizes(16, 64, num_warps=4, num_stages=3, waves=2)
    assert backend.num_splits(8, 131072, tile) == 32
    assert backend.num_splits(512, 131072, tile) == 1
    assert backend.num_splits(8, 130, tile) == 2
    assert backend.num_splits(1, 10**6, tile) == 64
    assert backend.num_splits(8, 131072, replace(tile, waves=4)) == 64


def test_large_scores_do_not_overflow():
    check(DECODES, sizes=(32, 32), scaling=300.0)
    check(DECODES, sizes=(32, 32), scaling=300.0, softcap=50.0)


def test_the_output_of_a_padding_row_is_zero():
    """A sequence without context, like the unused rows of a CUDA graph's buffers."""
    generator = torch.Generator().manual_seed(0)
    batch = packed_batch([(1, 40), (1, 0)], 16, 8, generator, DEVICE)
    query = torch.randn(2, 4, 32, generator=generator).to(DEVICE)
    cache = torch.randn(128, 2, 32, generator=generator).to(DEVICE)
    kv = LayerKV(cache, cache, 16)
    output = TritonBackend(16).attend(query, kv, batch, AttentionSpec(scaling=1.0))
    assert torch.isfinite(output).all()
    assert (output[1] == 0).all()


@pytest.mark.parametrize("seed", [*range(3), *nightly(*range(3, 9))])
def test_random_batches(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    lengths = []
    for _ in range(draw(1, 9)):
        context = draw(1, 150)
        lengths.append((1 if draw(0, 2) else draw(1, context + 1), context))
    kv_heads = draw(1, 4)
    check(
        lengths,
        heads=(kv_heads * draw(1, 9), kv_heads),
        sizes=(8 * draw(1, 13),) * 2,
        block_size=draw(1, 40),
        num_multiprocessors=draw(1, 50),
        seed=seed,
        sliding_window=draw(1, 200) if draw(0, 2) else None,
        chunk_size=draw(1, 200) if draw(0, 2) else None,
    )
