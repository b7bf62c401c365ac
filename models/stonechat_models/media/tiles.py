"""What the image processors for Pillow share whose images become tiles of one size."""

from typing import Any, ClassVar

import numpy as np
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

Pixels = np.ndarray[Any, Any]


class TileProcessor(PilBackend):  # type: ignore[misc]
    """Its defaults are those of transformers' classes for these models."""

    do_resize = True
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    do_normalize = True
    image_mean: ClassVar = [0.5, 0.5, 0.5]
    image_std: ClassVar = [0.5, 0.5, 0.5]


def cut(image: Pixels, rows: int, columns: int, side: int) -> Pixels:
    """Return the tiles [rows * columns, C, side, side] of an image [C, H, W], row by row."""
    grid = image.reshape(-1, rows, side, columns, side).transpose(1, 3, 0, 2, 4)
    return grid.reshape(rows * columns, -1, side, side)
