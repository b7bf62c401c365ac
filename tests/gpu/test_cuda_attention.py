"""The Triton attention kernels where only a device can show a fault: races, graphs, large offsets.

`tests/models/backends/transformers/attention` compares them with float64, on the device too.
"""

import pytest
import torch

from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.backends.transformers.attention.triton_backend import TritonBackend
from stonechat_models.backends.transformers.cuda.memory import CudaCapturer
from stonechat_models.backends.transformers.kv_cache import LayerKV
from tests.models.backends.transformers.attention.packed import decode_rows, packed_batch

DEVICE = torch.device("cuda:0")
BLOCK_SIZE = 16
TOLERANCE = 1.6e-2


def decode_step(contexts, *, heads=(32, 8), size=128, seed=0):
    """Query, cache, batch and specification of a decode step in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    num_blocks = sum(-(-c // BLOCK_SIZE) for c in contexts) + 3
    batch = packed_batch([(1, c) for c in contexts], BLOCK_SIZE, num_blocks, generator, DEVICE)
    shapes = [(len(contexts), heads[0], size)] + 2 * [(num_blocks * BLOCK_SIZE, heads[1], size)]
    query, keys, values = (
        torch.randn(shape, generator=generator).to(DEVICE, torch.bfloat16) for shape in shapes
    )
    return query, LayerKV(keys, values, BLOCK_SIZE), batch, AttentionSpec(scaling=size**-0.5)


def relative_error(actual, step):
    query, kv, batch, spec = step
    expected = SdpaBackend().attend(query.double(), kv, batch, spec)
    return float((actual.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("size", "group"), [(128, 4), (64, 4), (64, 8), (256, 2)], ids=str)
@pytest.mark.parametrize("contexts", [[5000], [4100, 33, 700, 1]], ids=["long", "ragged"])
def test_splits_are_summed_up_in_every_run(contexts, size, group):
    """The last program of a sequence reads what others stored: a race would differ at times."""
    step = decode_step(contexts, heads=(8 * group, 8), size=size)
    backend = TritonBackend.for_device(DEVICE)
    first = backend.attend(*step)
    assert relative_error(first, step) < TOLERANCE
    outputs = [backend.attend(*step) for _ in range(300)]
    num_different = sum(not torch.equal(output, first) for output in outputs)
    assert num_different == 0
    assert int(backend._num_done[DEVICE].abs().max()) == 0


def test_two_steps_in_turn():
    """Each reads the parts and counters that the other has used."""
    steps = [decode_step([3000, 40], seed=1), decode_step([900, 2000, 17], seed=2)]
    backend = TritonBackend.for_device(DEVICE)
    first = [backend.attend(*step) for step in steps]
    for _ in range(100):
        for step, expected in zip(steps, first, strict=True):
            assert torch.equal(backend.attend(*step), expected)


def test_a_graph_reads_the_context_of_its_replay():
    query, kv, batch, spec = decode_step([4000, 4000])
    backend = TritonBackend.for_device(DEVICE)
    replay = CudaCapturer(DEVICE).capture(lambda: backend.attend(query, kv, batch, spec))
    for contexts in ([4000, 4000], [1, 530], [64, 3999], [0, 65]):
        batch.context_lens.copy_(torch.tensor(contexts, dtype=torch.int32))
        batch.context_lens_list = contexts
        output = replay()
        seen = [i for i, context in enumerate(contexts) if context]
        step = (query[seen], kv, decode_rows(batch, seen), spec)
        assert relative_error(output[seen], step) < TOLERANCE
        assert (output[[i for i in range(2) if i not in seen]] == 0).all()


def test_offsets_over_32_bits():
    """Slots from the end of a cache of more than 2^31 numbers."""
    heads, size, context = 8, 128, 100
    num_blocks = (1 << 31) // (heads * size * BLOCK_SIZE) + 16
    needed = 2 * num_blocks * BLOCK_SIZE * heads * size
    if torch.cuda.mem_get_info()[0] < 2 * needed:
        pytest.skip("not enough memory")
    query, small, batch, spec = decode_step([context])
    cache = torch.zeros((num_blocks * BLOCK_SIZE, heads, size), dtype=torch.bfloat16, device=DEVICE)
    num_slots = small.keys.shape[0]
    cache[-num_slots:] = small.keys
    batch.block_table += num_blocks - num_slots // BLOCK_SIZE
    step = (query, LayerKV(cache, cache, BLOCK_SIZE), batch, spec)
    output = TritonBackend.for_device(DEVICE).attend(*step)
    assert relative_error(output, step) < TOLERANCE
