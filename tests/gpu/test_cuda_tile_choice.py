"""The decode tile is chosen by measurement, and what it computes is right."""

import torch

from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.parity_check import LayerKind, ParityCheck


def test_tiles_are_timed_and_chosen(device):
    from stonechat_models.backends.transformers.attention.tile_choice import choose_decode_tiles
    from stonechat_models.backends.transformers.attention.triton_backend import TritonBackend

    lines: list[str] = []
    shape = (32, 8, 64, 64)
    kind = LayerKind(*shape, AttentionSpec(scaling=0.125))
    check = ParityCheck(device, torch.bfloat16, torch.bfloat16, 16, [kind])
    backend = TritonBackend.for_device(device)
    timings = choose_decode_tiles(backend, check, lines.append)
    assert [t.num_seqs for t in timings] == [1, 64], lines
    assert all(0 < t.seconds <= t.usual_seconds for t in timings)
    assert backend.decode_tiles == {shape: (timings[0].tile, timings[1].tile)}
    check.run(backend)
