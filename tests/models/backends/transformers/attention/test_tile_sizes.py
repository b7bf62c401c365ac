"""Tile sizes fit the shape, and measured ones are used for their card only."""

import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.transformers.attention import tile_sizes
from stonechat_models.backends.transformers.attention.tile_sizes import Tiles, TileShape, TileSizes

CARDS = [(8, 0), (8, 9), (9, 0), (12, 0)]
SHAPES = [
    TileShape(group, size, dtype)
    for group in (1, 4, 7, 71)
    for size in (16, 64, 128, 256)
    for dtype in (torch.bfloat16, torch.float32)
]


@pytest.mark.parametrize("card", CARDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_hold_the_heads_of_a_token(card, shape):
    tiles = Tiles(card)
    for tile in (tiles.decode(shape), tiles.prefill(shape)):
        assert tile.rows >= max(16, shape.group)
        assert tile.rows & (tile.rows - 1) == 0


def test_measured_sizes_are_for_their_card_in_half_precision(monkeypatch):
    measured = TileSizes(0, 32, num_warps=2, num_stages=4, waves=3)
    monkeypatch.setitem(tile_sizes.MEASURED_DECODE, ((9, 0), 64), measured)
    monkeypatch.setitem(tile_sizes.MEASURED_PREFILL, ((9, 0), 64), measured)
    half, full = TileShape(4, 64, torch.float16), TileShape(4, 64, torch.float32)
    found = Tiles((9, 0)).decode(half)
    assert found == TileSizes(16, 32, num_warps=2, num_stages=4, waves=3)
    assert Tiles((9, 0)).prefill(TileShape(5, 64, torch.bfloat16)).rows == 8
    for tiles, shape in ((Tiles((9, 0)), full), (Tiles((8, 9)), half), (Tiles(), half)):
        assert tiles.decode(shape).waves != 3
        assert tiles.prefill(shape).waves != 3
