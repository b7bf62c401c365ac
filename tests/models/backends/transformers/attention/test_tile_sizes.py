"""Tile sizes fit the shape."""

import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.transformers.attention.tile_sizes import Tiles, TileShape

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
