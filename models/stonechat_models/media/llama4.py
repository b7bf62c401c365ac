"""The image processor of Llama 4 for Pillow. That of transformers needs torchvision.

An image is scaled to fit into a grid of tiles of one size, with black to its right and below. The
tiles are stored row by row. Behind several of them stands the whole image as one more tile.
"""

import math
from typing import Any, ClassVar

import numpy as np
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict
from transformers.processing_utils import ImagesKwargs

from stonechat_models.media.tiles import Pixels, TileProcessor, cut


class Settings(ImagesKwargs, total=False):  # type: ignore[misc, call-arg]
    """What preprocessor_config.json may say beside the settings of all image processors."""

    max_patches: int
    resize_to_max_canvas: bool


class Llama4ImageProcessor(TileProcessor):
    """Its defaults are those of transformers' class of this name."""

    valid_kwargs = Settings
    model_input_names: ClassVar = ["pixel_values"]
    max_patches = 16
    """The most tiles of an image."""
    resize_to_max_canvas = False
    size: ClassVar = {"height": 336, "width": 336}
    do_convert_rgb = True

    def _preprocess(
        self,
        images: list[Pixels],
        size: SizeDict,
        resample: Any,
        rescale_factor: float,
        image_mean: list[float],
        image_std: list[float],
        return_tensors: Any,
        **kwargs: Any,
    ) -> Any:
        """Return the tiles of all images, and the rows and columns of tiles of each."""
        values = _values(rescale_factor, image_mean, image_std)
        tiles, grids = list[Pixels](), list[tuple[int, int]]()
        for image in images:
            grid = self._grid(image.shape[-2:], size.height)
            parts = self._tiles(image, grid, size.height, resample)
            if len(parts) > 1:
                parts = np.concatenate([parts, self.resize(image, size, resample)[None]])
            tiles.append(values[np.arange(len(values))[:, None, None], parts])
            grids.append(grid)
        data = {"pixel_values": np.concatenate(tiles), "aspect_ratios": np.array(grids)}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _grid(self, image_size: tuple[int, int], side: int) -> tuple[int, int]:
        """Return how many rows and columns of tiles an image has.

        Into the grid it fits with the least scaling up (with `resize_to_max_canvas`, the most), or
        if it fits into none, with the least scaling down. Of several such grids, the smallest one
        is taken.
        """
        counts = range(self.max_patches, 0, -1)
        grids = [(r, n // r) for n in counts for r in range(1, n + 1) if n % r == 0]
        ratios = list(dict.fromkeys(rows / columns for rows, columns in grids))
        grids.sort(key=lambda grid: ratios.index(grid[0] / grid[1]))  # those of a ratio together
        # In single precision, as PyTorch counts.
        sides = np.array(grids, np.float32) * np.float32(side)
        scales = (sides / np.array(image_size, np.float32)).min(axis=1)
        up = scales[scales >= 1]
        choose = np.min if len(up) and not self.resize_to_max_canvas else np.max
        best = choose(up if len(up) else scales)
        return min((g for g, s in zip(grids, scales, strict=True) if s == best), key=math.prod)

    def _tiles(self, image: Pixels, grid: tuple[int, int], side: int, resample: Any) -> Pixels:
        """Return uint8[n, 3, side, side]: the tiles of an image [3, H, W]."""
        height, width = image.shape[-2:]
        canvas = [count * side for count in grid]
        # In single precision where PyTorch counts so: near a whole number it is the other one.
        room: list[Any] = [np.float32(length) for length in canvas]
        if not self.resize_to_max_canvas:  # it is not scaled up to more than one tile
            room = [min(max(n, side), most) for n, most in zip((height, width), room, strict=True)]
        down, across = room[0] / height, room[1] / width
        if across < down:
            scaled = min(math.floor(height * across), room[0]), room[1]
        else:
            scaled = room[0], min(math.floor(width * down), room[1])
        resized = self.resize(image, SizeDict(*(max(1, int(n)) for n in scaled)), resample)
        missing = [
            (0, most - length) for most, length in zip(canvas, resized.shape[1:], strict=True)
        ]
        return cut(np.pad(resized, [(0, 0), *missing]), *grid, side)


def _values(factor: float, mean: list[float], std: list[float]) -> Pixels:
    """Return the number of each byte in each channel, float32[3, 256].

    Each of the three steps rounds to bfloat16, as in the model's original code.
    """
    scaled = _rounded(np.arange(256, dtype=np.float32) * np.float32(factor))
    means, stds = (_rounded(np.array(x, np.float32))[:, None] for x in (mean, std))
    return _rounded(_rounded(scaled - means) / stds)


def _rounded(values: Pixels) -> Pixels:
    """Return float32 numbers with the digits of bfloat16."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
